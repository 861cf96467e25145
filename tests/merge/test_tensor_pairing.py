"""Tensors of the models that are merged: missing, stray, tied, under two names."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.merged_checkpoints import SETTINGS, changed, merge, tiny_llama
from support.model_folders import load
from torch import Tensor

from hpa_lightning.merge import merge_checkpoints

PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize("which", ["task", "safety"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(PROJECTOR), "lacks|holds .*which the task model does not have"),
        (lambda tensors: tensors.update(stray=torch.ones(2)), r"builds no tensor for stray \(not in (task|safety)"),
    ],
    ids=["missing", "stray"],
)
def test_missing_and_stray_tensors(
    which: str, change: Any, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    broken = folders | {which: changed(folders[which], tmp_path / "broken", change)}
    with pytest.raises(ValueError, match=message):
        merge(broken, tmp_path / "out", SETTINGS["linear"])
    assert not list(tmp_path.glob("out*"))


def test_a_tensor_that_all_models_lack_is_missing(tmp_path: Path) -> None:
    """transformers draws it at random when the merged model is loaded."""
    for name, seed in (("task", 1), ("safety", 2)):
        tiny_llama(seed=seed).save_pretrained(tmp_path / f"{name} whole")
        changed(tmp_path / f"{name} whole", tmp_path / name, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"task holds no tensor for \['lm_head.weight'\] \(1 in all\); expected every"):
        merge_checkpoints(tmp_path / "task", tmp_path / "safety", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_what_is_kept_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    def blind(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if "vision" in key or "projector" in key]:
            del tensors[key]

    lacking = folders | {"safety": changed(folders["safety"], tmp_path / "blind", blind)}
    with pytest.raises(ValueError, match=r"lacks model.* and \d+ more, which the task model holds.*--keep"):
        merge(lacking, tmp_path / "out", SETTINGS["linear"])
    keep = ["model.vision_tower.*", "model.multi_modal_projector.*"]
    audit = merge(lacking, tmp_path / "out", SETTINGS["linear"], keep=keep)
    found, task = (load(folder).state_dict() for folder in (tmp_path / "out", folders["task"]))
    assert set(audit["kept"]) == {key for key in found if "vision" in key or "projector" in key}
    for key, tensor in found.items():
        assert torch.equal(tensor, task[key]) == (key in audit["kept"])
    with pytest.raises(ValueError, match=r"--keep vision\* matches no tensor; names are such as"):
        merge(folders, tmp_path / "none", SETTINGS["linear"], keep=["vision*"])


def test_tokens_that_one_model_has_more_are_told(tmp_path: Path) -> None:
    for name, size in (("task", 48), ("safety", 50)):
        tiny_llama(size).save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \(48, 32\) .* \(50, 32\) .*tokens were added"):
        merge_checkpoints(tmp_path / "task", tmp_path / "safety", tmp_path / "out")


@pytest.mark.parametrize(("task_ties", "safety_ties"), [(True, True), (False, True), (True, False)])
def test_tied_weights(task_ties: bool, safety_ties: bool, tmp_path: Path) -> None:
    ties = {"task": task_ties, "safety": safety_ties}
    for seed, (name, tied) in enumerate(ties.items()):
        tiny_llama(tied=tied, seed=seed).save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ties}
    if task_ties and not safety_ties:
        with pytest.raises(ValueError, match=r"ties lm_head.weight and model.embed_tokens.weight.*two values"):
            merge_checkpoints(**folders, output=tmp_path / "out")
        head = lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})  # noqa: E731
        folders["safety"] = changed(folders["safety"], tmp_path / "equal", head)  # stored twice, with one value
    told = pytest.warns(UserWarning, match="tie_word_embeddings") if task_ties != safety_ties else nullcontext()
    with told:
        merge_checkpoints(**folders, output=tmp_path / "out")
    found, task, safety = (load(folder).state_dict() for folder in (tmp_path / "out", *folders.values()))
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        torch.testing.assert_close(found[key], (task[key] + safety[key]) / 2)
    other = lambda tensors: tensors.update({"lm_head.weight": torch.ones(48, 32)})  # noqa: E731
    torn = changed(folders["safety"], tmp_path / "torn", other, tie_word_embeddings=True)
    with pytest.raises(
        ValueError, match=r"the safety model .* ties lm_head.weight .* stores them with different values"
    ):
        merge_checkpoints(folders["task"], torn, tmp_path / "other")


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_tied_weights_that_are_stored_twice_stay_equal(name: str, tmp_path: Path) -> None:
    """mergekit writes the head beside the embedding that it is tied to; each was given entries of its own."""
    folders = {}
    twice = lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})  # noqa: E731
    for seed, role in enumerate(("base", "task", "safety")):
        tiny_llama(tied=True, seed=seed).save_pretrained(tmp_path / f"{role} once")
        folders[role] = changed(tmp_path / f"{role} once", tmp_path / role, twice)
    merge(folders, tmp_path / "out", SETTINGS[name])
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    merge({role: tmp_path / f"{role} once" for role in folders}, tmp_path / "once", SETTINGS[name])
    assert len(load_file(tmp_path / "once" / "model.safetensors")) == len(found) - 1


def test_models_that_do_not_belong_together(folders: dict[str, Path], tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"task and safety are different models: .*llava.*llama"):
        merge(folders | {"safety": tmp_path / "llama"}, tmp_path / "out", SETTINGS["linear"])
    with pytest.raises(ValueError, match="there is nothing to merge"):
        merge(folders | {"safety": folders["task"]}, tmp_path / "out", SETTINGS["linear"])
    with pytest.raises(ValueError, match=r"ties merges what was added to a base; .*--base"):
        merge_checkpoints(folders["task"], folders["safety"], tmp_path / "out", settings=SETTINGS["ties"])
    with pytest.raises(ValueError, match="linear of two whole models uses no base"):
        merge_checkpoints(*(folders[name] for name in ("task", "safety")), tmp_path / "out", folders["base"])
    broken = lambda tensors: tensors[PROJECTOR].view(-1)[0].fill_(torch.inf)  # noqa: E731
    diverged = folders | {"safety": changed(folders["safety"], tmp_path / "nan", broken)}
    with pytest.raises(ValueError, match=r"linear_1.weight: 1 of \d+ values .* are not finite"):
        merge(diverged, tmp_path / "out", SETTINGS["linear"])


def test_a_tensor_under_two_names_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    key = "language_model.model.norm.weight"
    twice = lambda tensors: tensors.update({"model.language_model.norm.weight": tensors[key].clone()})  # noqa: E731
    double = changed(folders["safety"], tmp_path / "double", twice)
    with pytest.raises(ValueError, match=r"which are one tensor, model.language_model.norm.weight"):
        merge(folders | {"safety": double}, tmp_path / "out", SETTINGS["linear"])
