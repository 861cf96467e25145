"""Which files of a folder are the checkpoint: indices, snapshots of the cache, trainers, files side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.fused_checkpoints import copy
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.tensor_files import TensorFiles


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "names the file '3'"),
        ('{"weight_map": {"a": "config.json"}}', "names config.json; expected safetensors"),
    ],
)
def test_a_damaged_index_is_named(content: str, message: str, folder: Path, tmp_path: Path) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    (damaged / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=f"index.json.*{message}"):
        Checkpoint(damaged)


def test_a_snapshot_of_the_cache_is_read(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0a1b", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        (blobs / f"{number:040x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    cached, plain = Checkpoint(snapshot), Checkpoint(folder)
    assert cached.tensors.stored == plain.tensors.stored
    key = next(iter(plain.tensors.stored))
    assert torch.equal(cached.tensors.read(key), plain.tensors.read(key))


@pytest.mark.parametrize("tuned", ["whole", "adapter"])
def test_a_checkpoint_of_the_trainer_of_transformers_is_read(tuned: str, folder: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    if tuned == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    row = {"input_ids": torch.arange(5), "labels": torch.arange(5)}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no"
    )
    Trainer(model=model, args=arguments, train_dataset=[row, row]).train()
    saved = tmp_path / "checkpoint-1"
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} <= {f.name for f in saved.iterdir()}
    checkpoint = Checkpoint(saved) if tuned == "whole" else AdaptedCheckpoint(folder, saved)
    assert checkpoint.left_out == []


# -- which weights are the model's -----------------------------------------------------------------------------------


def test_a_single_file_beside_shards_is_refused_for_transformers_reads_one_of_them(
    folder: Path, tmp_path: Path
) -> None:
    both = copy(folder, tmp_path / "both")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.fill_(7.0)
    model.save_pretrained(tmp_path / "single")
    (both / "model.safetensors").write_bytes((tmp_path / "single" / "model.safetensors").read_bytes())
    assert bool((AutoModelForImageTextToText.from_pretrained(both).lm_head.weight == 7).all())  # not the shards
    with pytest.raises(ValueError, match=r"two sets of weights. transformers reads model.safetensors; remove"):
        Checkpoint(both)
    for shard in both.glob("model-*.safetensors"):
        shard.unlink()
    keys = TensorFiles(both, ["model.safetensors"]).stored
    (both / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, "model.safetensors")})
    )
    assert Checkpoint(both).tensors.files == ("model.safetensors",)  # an index of the single file


def test_an_adapter_beside_a_whole_model_is_refused(folder: Path, tmp_path: Path) -> None:
    both = copy(folder, tmp_path / "both")
    (both / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a whole model and adapter_config.json"):
        Checkpoint(both)
