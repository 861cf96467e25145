"""Names and links that lead out of a folder, and weights that would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.fused_checkpoints import copy

from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.fuse.folder import file_inside, weights_left_out

# What the documentation and the code of each program say that they write beside the weights.
TRAINER_FILES = {
    "transformers": "training_args.bin optimizer.pt scheduler.pt scaler.pt rng_state.pth rng_state_0.pth",
    "accelerate": "optimizer.bin optimizer_1.bin scheduler.bin sampler.bin sampler_1.bin random_states_0.pkl",
    "deepspeed": "latest zero_to_fp32.py rng_state_0.pth rng_state_1.pth training_args.bin",
    "llama-factory": "training_args.bin all_results.json training_loss.png trainer_log.jsonl README.md",
    "ms-swift": "args.json additional_config.json configuration.json training_args.bin scheduler.pt rng_state_0.pth",
    "axolotl": "README.md tokens_state.json debug.log training_args.bin optimizer.bin",
    "unsloth": "README.md tokenizer.model special_tokens_map.json chat_template.jinja training_args.bin",
    "mergekit": "mergekit_config.yml README.md tokenizer.json",
}


@pytest.mark.parametrize("kind", ["model", "adapter"])
@pytest.mark.parametrize("program", TRAINER_FILES)
def test_what_trainers_leave_beside_the_weights_is_no_weight(program: str, kind: str, tmp_path: Path) -> None:
    for name in TRAINER_FILES[program].split():
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").touch()  # a folder of its own, which no loader looks into
    assert weights_left_out(tmp_path, set(), kind) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("model", "pytorch_model-00001-of-00002.bin"),  # Llama-2's repository
        ("model", "pytorch_model.bin"),
        ("model", "consolidated.safetensors"),  # Mistral's
        ("model", "consolidated.00.pth"),
        ("model", "tf_model.h5"),
        ("model", "model-unsloth.Q4_K_M.gguf"),
        ("model", "value_head.safetensors"),  # LLaMA-Factory's and ms-swift's reward models
        ("adapter", "adapter_model.bin"),
        ("adapter", "value_head.bin"),
    ],
)
def test_copies_that_no_loader_reads_are_listed(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert weights_left_out(tmp_path, {"read.safetensors"}, kind) == [tmp_path / name]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("adapter", "vit.safetensors"),
        ("adapter", "non_lora_trainables.bin"),
        ("adapter", "mm_projector.bin"),
        ("adapter", "pytorch_model.bin"),
        ("adapter", "new_embeddings.safetensors"),
        ("adapter", "lora_extra.PT"),
        ("model", "mm_projector.bin"),
        ("model", "ema.pt"),
        ("model", "model-00003-of-00003.safetensors"),
        ("model", "adapter_model.safetensors"),
    ],
)
def test_weights_that_would_be_lost_are_refused_by_name(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"holds {name} beside the {kind}'s weights.*ove"):
        weights_left_out(tmp_path, {"read.safetensors"}, kind)
    assert weights_left_out(tmp_path, {name}, kind) == []


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "sub/a", "..", ".", "", "a\\..\\b", "C:a", "a\0", 3, None, ["a"]]
)
def test_names_that_are_no_plain_file_names_are_refused(name: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match=r"index names the file .*expected the plain name"):
        file_inside(tmp_path / "folder", name, "index")


def test_links_stay_inside_or_lead_to_the_blobs_of_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "123"
    blobs = tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in (blobs / "f00", tmp_path / "outside", folder / "real"):
        path.touch()
    (folder / "model.safetensors").symlink_to("../../blobs/f00")  # as huggingface_hub lays it out
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").symlink_to("../../../blobs/f00")
    assert file_inside(folder / "additional_chat_templates", "tool_use.jinja", "it").resolve() == blobs / "f00"
    (folder / "inside").symlink_to("real")
    (folder / "leaves").symlink_to(tmp_path / "outside")
    (tmp_path / "name").symlink_to(folder)
    for home in (folder, tmp_path / "name"):
        assert file_inside(home, "model.safetensors", "index") == home / "model.safetensors"
        assert file_inside(home, "inside", "index").is_file()
        with pytest.raises(ValueError, match=r"is a link to .*outside, outside its folder"):
            file_inside(home, "leaves", "index")
    with pytest.raises(ValueError, match="no such file"):
        file_inside(folder, "missing", "index")


@pytest.mark.parametrize("where", ["../outside.safetensors", "absolute"])
def test_an_index_cannot_name_files_outside(where: str, folder: Path, tmp_path: Path) -> None:
    hostile = copy(folder, tmp_path / "hostile")
    index = hostile / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = next(iter(content["weight_map"].values()))
    outside = tmp_path / "outside.safetensors"
    (hostile / file).rename(outside)
    before = outside.read_bytes()
    name = str(outside) if where == "absolute" else where
    content["weight_map"] = {k: name if v == file else v for k, v in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index.json names the file .*outside.safetensors'; expected the plain name"):
        fuse_checkpoints(folder, hostile, tmp_path / "out" / "fused", [], [])
    assert outside.read_bytes() == before and not (tmp_path / "out").exists()


def test_copies_are_told_once(folder: Path, tmp_path: Path) -> None:
    after = copy(folder, tmp_path / "after")
    (after / "pytorch_model.bin").touch()
    with (
        pytest.warns(UserWarning, match=r"not read and not in the output.*after/pytorch_model.bin") as caught,
        pytest.raises(ValueError, match="nothing to fuse"),
    ):
        fuse_checkpoints(folder, after, tmp_path / "out", [], [])
    assert sum("not read" in str(warning.message) for warning in caught) == 1
