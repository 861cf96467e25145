from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from support.tiny_mllms import tiny_llava
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.folder import file_inside, weights_left_out
from hpa_lightning.fuse.tensor_files import TensorFiles

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    model, processor = tiny_llava(2)
    model.save_pretrained(path, max_shard_size="60KB")
    processor.save_pretrained(path)
    return path


def copy(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
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


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]},
        {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]},
        {"dtype": "F32"},
        "F32",
    ],
)
def test_headers_that_lie_are_refused(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"weight": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=r"a.safetensors: weight cannot be read"):
        TensorFiles(tmp_path, ["a.safetensors"])


@pytest.mark.parametrize("header", [b"{", b"[1]", b'"x"', b"\xff\xff", b"[" * 100_000])
def test_what_is_no_header_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"a.safetensors is no safetensors file"):
        TensorFiles(tmp_path, ["a.safetensors"])
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 8 + header)
    with pytest.raises(ValueError, match=r"a.safetensors is cut short or no safetensors file"):
        TensorFiles(tmp_path, ["a.safetensors"])


def test_a_tensor_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"weight": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"weight is stored twice, in a.safetensors and in b.safetensors"):
        TensorFiles(tmp_path, ["a.safetensors", "b.safetensors"])


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


def test_copies_are_told_once(folder: Path, tmp_path: Path) -> None:
    after = copy(folder, tmp_path / "after")
    (after / "pytorch_model.bin").touch()
    with (
        pytest.warns(UserWarning, match=r"not read and not in the output.*after/pytorch_model.bin") as caught,
        pytest.raises(ValueError, match="nothing to fuse"),
    ):
        fuse_checkpoints(folder, after, tmp_path / "out", [], [])
    assert sum("not read" in str(warning.message) for warning in caught) == 1
