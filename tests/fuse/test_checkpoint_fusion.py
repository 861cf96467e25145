"""The fusion of two checkpoints against that of whole models; everything else stays byte for byte."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fused_checkpoints import LAYERS, RETENTION, SAFETY, SETTINGS, TASK, contents, copy
from support.model_folders import load, tuned, write
from support.tiny_mllms import evaluation_records, tiny_llava
from torch import Tensor, nn
from transformers import AutoProcessor

from hpa_lightning import functional as F
from hpa_lightning.calibration import inverse_hessian_diagonals
from hpa_lightning.callbacks import RetentionSettings
from hpa_lightning.callbacks.batches import valid_positions
from hpa_lightning.data import MLLMCollator
from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.modules.blocks import find_decoder_blocks


def linears_of(model: nn.Module) -> tuple[list[nn.Module], dict[str, nn.Module]]:
    prefix, blocks = find_decoder_blocks(model)
    modules = {name: module for name, module in model.named_modules() if name.startswith(f"{prefix}.")}
    return blocks, {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}


def whole_model_fusion(
    before: Path, after: Path, saliency: str, units: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Algorithm 1 with both models in memory: fused weights and retained columns by layer."""
    diagonals = []
    for folder, records in ((before, SAFETY), (after, TASK)):
        model, collator = load(folder), MLLMCollator(AutoProcessor.from_pretrained(folder))
        batches = [collator.train(records[start : start + 2]) for start in range(0, len(records), 2)]
        for batch in batches:
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        blocks, linears = linears_of(model)
        forward = lambda batch, model=model: model(**batch, use_cache=False)  # noqa: E731
        diagonals.append(inverse_hessian_diagonals(forward, batches, blocks, linears, valid_positions=valid_positions))
    old, new = (dict(load(folder).named_parameters()) for folder in (before, after))
    fused, masks = {}, {}
    for name in diagonals[0]:
        w_old, w_new = (weights[f"{name}.weight"].detach() for weights in (old, new))
        divisors = (diagonal[name] if saliency == "divide" else 1 / diagonal[name] for diagonal in diagonals)
        if units == "rows":
            square = (w_new.float() - w_old.float()).double().square()
            epsilon, zeta = ((square / divisor.double()).mean(1).float() for divisor in divisors)
        else:
            energy = F.column_energy(w_new.float() - w_old.float())
            epsilon, zeta = (F.column_focus(energy, divisor) for divisor in divisors)
        layer = int(name.split(".layers.")[1].split(".")[0]) + 1
        percent = 40.0 - layer / LAYERS * 20.0
        masks[name] = F.retained_columns(epsilon, zeta, percent)
        kept = masks[name].unsqueeze(1) if units == "rows" else masks[name]
        fused[name] = torch.where(kept, w_old, F.orthogonal_update(w_old, w_new))
    return fused, masks


@pytest.mark.parametrize(
    ("dtype", "saliency", "units"),
    [
        (torch.float32, "divide", "columns"),
        (torch.bfloat16, "divide", "columns"),
        (torch.float32, "multiply", "columns"),
        (torch.bfloat16, "divide", "rows"),
        (torch.float32, "multiply", "rows"),
    ],
)
def test_equals_the_fusion_of_whole_models(dtype: torch.dtype, saliency: str, units: str, tmp_path: Path) -> None:
    model, processor = tiny_llava(LAYERS)
    before = write(tmp_path / "before", model.to(dtype), processor, "40KB")
    after = write(tmp_path / "after", tuned(model), processor)
    settings = {**SETTINGS, "retention": replace(RETENTION, saliency=saliency, units=units)}
    audit = fuse_checkpoints(before, after, tmp_path / "out", SAFETY, TASK, **settings)
    fused, masks = whole_model_fusion(before, after, saliency, units)
    result, tuned_model = load(tmp_path / "out"), load(after)
    expected = tuned_model.state_dict() | {f"{name}.weight": weight for name, weight in fused.items()}
    found = result.state_dict()
    assert found.keys() == expected.keys() and len(fused) == 7 * LAYERS
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == dtype for name in expected)
    assert not any(torch.equal(fused[name], tuned_model.state_dict()[f"{name}.weight"]) for name in fused)
    tuned_model.load_state_dict(expected)
    batch = MLLMCollator(processor).train(TASK[:2])
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with torch.no_grad():
        assert torch.equal(result(**batch).logits, tuned_model(**batch).logits)
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template == processor.chat_template

    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == audit
    assert [entry["module"] for entry in audit["layers"]] == list(fused)
    for entry in audit["layers"]:
        assert entry["retained"] == int(masks[entry["module"]].sum()) > 0
        assert entry["columns"] == len(masks[entry["module"]])
    assert audit["samples"] == {"safety": 3, "task": 4} and audit["unchanged"] == []


def test_everything_else_is_kept_byte_for_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = pair
    audit = fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, target_modules=["q_proj", "down_proj"], **SETTINGS)
    assert len(audit["layers"]) == 2 * LAYERS
    made, given, old = (Checkpoint(folder) for folder in (tmp_path / "out", after, before))
    assert made.tensors.stored == given.tensors.stored  # files, places, shapes, dtypes
    fused = 0
    for file in given.tensors.files:
        left, right = ((folder / file).read_bytes() for folder in (tmp_path / "out", after))
        for key, place in given.tensors.stored.items():
            if place.file == file:
                same = left[place.start : place.end] == right[place.start : place.end]
                treated = "language_model" in key and key.endswith(("q_proj.weight", "down_proj.weight"))
                assert same != treated, key
                fused += treated
    assert fused == 2 * LAYERS
    others = contents(after).keys() - set(given.tensors.files)
    assert others and contents(tmp_path / "out").keys() == contents(after).keys() | {"audit.json"}
    assert all((tmp_path / "out" / name).read_bytes() == (after / name).read_bytes() for name in others)
    assert set(given.tensors.files) != set(old.tensors.files)  # the layout is the tuned model's


def test_whole_numbers_are_no_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    after = copy(pair[1], tmp_path / "after")
    for file in after.glob("*.safetensors"):
        tensors = load_file(file)
        names = [key for key in tensors if re.search(r"language_model.*q_proj", key)]
        save_file(tensors | {key: (tensors[key] * 100).to(torch.int8) for key in names}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"q_proj\.weight is stored as torch\.int8 \({LAYERS} such layers\)"):
        fuse_checkpoints(pair[0], after, tmp_path / "out", SAFETY, TASK, **SETTINGS)


def test_layers_that_tuning_left_alone_are_not_fused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model, processor = load(pair[0]), AutoProcessor.from_pretrained(pair[0])
    _, linears = linears_of(model)
    name = next(name for name in linears if name.endswith("1.mlp.up_proj"))
    with torch.no_grad():
        linears[name].weight.mul_(1 + 0.1 * torch.randn(linears[name].weight.shape))
    after = write(tmp_path / "after", model, processor)
    audit = fuse_checkpoints(pair[0], after, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    assert [entry["module"] for entry in audit["layers"]] == [name]
    assert len(audit["unchanged"]) == 7 * LAYERS - 1


def test_a_fusion_that_retains_nothing_is_warned_of(pair: tuple[Path, Path], tmp_path: Path) -> None:
    few = {**SETTINGS, "retention": RetentionSettings(p_min=0.05, p_max=0.15)}
    with pytest.warns(UserWarning, match=r"out: no column is retained in any of \d+ linear layers .* in percent"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **few)


def test_key_names_of_either_kind_and_other_dtypes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = pair
    processor, models = AutoProcessor.from_pretrained(before), [load(folder) for folder in pair]
    models[1].save_pretrained(tmp_path / "new_names", save_original_format=False)
    processor.save_pretrained(tmp_path / "new_names")
    keys = [set(Checkpoint(folder).tensors.stored) for folder in (after, tmp_path / "new_names")]
    assert not keys[0] & keys[1]
    fuse_checkpoints(*pair, tmp_path / "old", SAFETY, TASK, **SETTINGS)
    fuse_checkpoints(before, tmp_path / "new_names", tmp_path / "new", SAFETY, TASK, **SETTINGS)
    old, new = (load(tmp_path / name).state_dict() for name in ("old", "new"))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)

    # What was tuned in bfloat16 began as the model before, rounded: the same diagonals are taken for both.
    half = write(tmp_path / "half", models[1].to(torch.bfloat16), processor)
    rounded = write(tmp_path / "rounded", models[0].to(torch.bfloat16), processor)
    diagonals = tmp_path / "diagonals"
    fuse_checkpoints(rounded, half, tmp_path / "from_rounded", SAFETY, TASK, save_diagonals=diagonals, **SETTINGS)
    fuse_checkpoints(before, half, tmp_path / "from_full", diagonals=diagonals, **SETTINGS)
    assert contents(tmp_path / "from_rounded", "audit.json") == contents(tmp_path / "from_full", "audit.json")


def test_data_without_answers_and_no_data_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"safety data.*no answer.*refusals"):
        fuse_checkpoints(*pair, tmp_path / "out", evaluation_records(3), TASK)
    with pytest.raises(ValueError, match=r"task data.*no answer"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, evaluation_records(3))
    with pytest.raises(ValueError, match="no safety data"):
        fuse_checkpoints(*pair, tmp_path / "out", None, TASK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["safety", "task"])
@pytest.mark.parametrize("broken", [False, True])
def test_images_are_opened_before_anything_is_computed(
    which: str, broken: bool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The last record of either kind, whose turn comes when all others have been through the model."""
    data = {"safety": SAFETY, "task": TASK}
    path, message = tmp_path / "gone.jpg", "does not exist; check `image_folder`"
    if broken:
        message = "cannot be read"
        path.write_bytes(b"no picture")
    lone = replace(data[which][-1], images=(str(path),) * len(data[which][-1].images))
    data[which] = [*data[which][:-1], lone]
    with pytest.raises(ValueError, match=f"^{which} data, {re.escape(lone.where)}: image file .*gone.jpg.* {message}"):
        fuse_checkpoints(*pair, tmp_path / "out", data["safety"], data["task"], **SETTINGS)
    assert not list(tmp_path.glob("out*")), "nothing was begun"


@pytest.mark.parametrize("name", ["language_model.layers.1.mlp.up_proj.weight", "vision_tower.*patch_embedding.weight"])
@pytest.mark.parametrize("which", [0, 1])
def test_weights_that_are_not_finite_are_named_before_any_calibration(
    name: str, which: int, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model, processor = load(pair[which]), AutoProcessor.from_pretrained(pair[which])
    found = next(parameter for key, parameter in model.named_parameters() if re.search(f"{name}$", key))
    with torch.no_grad():
        found.view(-1)[0] = torch.nan
    folders = list(pair)
    folders[which] = write(tmp_path / "diverged", model, processor)
    with pytest.raises(ValueError, match=rf"{name}: 1 of \d+ values in .*diverged are not finite"):
        fuse_checkpoints(*folders, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.partial/progress/*0000*"))
