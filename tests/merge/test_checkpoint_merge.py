"""Merging of checkpoints against merges of whole models in memory, and against mergekit's own program."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.merged_checkpoints import SETTINGS, merge, models, tiny_llama
from support.model_folders import load, tuned, write
from support.random_architectures import build
from support.tiny_mllms import training_records
from torch import Tensor
from transformers import AutoProcessor

from hpa_lightning import functional as F
from hpa_lightning.data import MLLMCollator
from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.fuse.output import PartialOutput
from hpa_lightning.merge import MergeSettings, checkpoint_merge, merge_checkpoints
from hpa_lightning.modules import MLLMModule


def in_memory(folders: dict[str, Path], settings: MergeSettings) -> dict[str, Tensor]:
    """Every tensor of the loaded models merged by the functions of `functional`."""
    states = {name: load(folder).state_dict() for name, folder in folders.items()}
    found = {}
    for name, task in states["task"].items():
        safety, base = states["safety"][name], states["base"][name]
        if not task.is_floating_point():
            found[name] = task
        elif not settings.needs_base:
            function = F.merge_linearly if settings.method == "linear" else F.merge_spherically
            found[name] = function(task.reshape(1, -1), safety.reshape(1, -1), settings.ratio).reshape(task.shape)
        else:
            given = {
                key: value
                for key, value in asdict(settings).items()
                if key in ("method", "density", "normalize", "rescale", "convention", "majority_sign_method")
            }
            generator = named_generator(settings.seed, "dare", name)
            vectors, weights = [task - base, safety - base], settings.weights or (1 - settings.ratio, settings.ratio)
            merged = F.merge_task_vectors(vectors, weight=weights, generator=generator, **given)
            found[name] = base + settings.scale * merged
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_merge_of_whole_models(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    audit = merge(folders, tmp_path / "out", SETTINGS[name])
    expected = in_memory(folders, SETTINGS[name])
    found = load(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6)
    assert len(audit["tensors"]) == len(found) and not audit["kept"] and not audit["unchanged"]
    assert any("vision_tower" in entry["tensor"] for entry in audit["tensors"])
    assert all(entry["from_task"] > 0 < entry["from_safety"] for entry in audit["tensors"])


@pytest.mark.parametrize("model_type", ["llama", "llava", "qwen2_vl", "qwen2_5_vl", "idefics3", "gemma3"])
@pytest.mark.parametrize("name", ["linear", "ties"])
def test_real_architectures_come_back_as_a_module(model_type: str, name: str, tmp_path: Path) -> None:
    """From their configurations: the folder is loaded by MLLMModule, answers, and holds what was merged."""
    processor = build("llava")[1].tokenizer if model_type == "llama" else None
    maker = lambda: (tiny_llama(len(processor)), processor) if processor else build(model_type)  # noqa: E731
    folders = models(maker, tmp_path)
    merge(folders, tmp_path / "out", SETTINGS[name])
    module = MLLMModule(model=str(tmp_path / "out"), processor=processor)
    expected = in_memory(folders, SETTINGS[name])
    for key, tensor in module.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6)
    if processor is None:
        batch = MLLMCollator(module.processor).generate(training_records(2, 1, "q"))
        assert len(module.generate(batch, max_new_tokens=2)) == 2


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_equals_the_program_mergekit(method: Any, ratio: float, tmp_path: Path) -> None:
    """Its whole run, from YAML to a folder, on three folders of a Llama."""
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    made = {"base": tiny_llama(), "task": tuned(tiny_llama(), 1, 0.5), "safety": tuned(tiny_llama(), 2, 0.5)}
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in made}
    shares = {"task": 1 - ratio, "safety": ratio}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "models": [
            {"model": str(folders[name]), "parameters": {"weight": share, "density": 0.4}}
            for name, share in shares.items()
        ],
    }
    if method == "slerp":
        recipe |= {"base_model": str(folders["task"]), "parameters": {"t": ratio}}
        recipe["models"] = [{"model": str(folders[name])} for name in shares]
    elif method == "linear":
        recipe["models"] = [{"model": str(folders[name]), "parameters": {"weight": s}} for name, s in shares.items()]
    else:
        recipe["base_model"] = str(folders["base"])
        if method == "task_arithmetic":
            for model in recipe["models"]:
                del model["parameters"]["density"]
    run_merge(
        MergeConfiguration.model_validate(recipe),
        str(tmp_path / "theirs"),
        MergeOptions(copy_tokenizer=False, write_model_card=False),
    )
    density = {"density": 0.4} if method == "ties" else {}
    merge(folders, tmp_path / "ours", MergeSettings(method, ratio, **density))
    theirs, ours = (load(tmp_path / name).state_dict() for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-6)


def test_the_ends_of_linear_and_slerp_are_the_models_bit_for_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    for method in ("linear", "slerp"):
        for ratio, which in ((0.0, "task"), (1.0, "safety")):
            merge(folders, tmp_path / f"{method}{which}", MergeSettings(method, ratio))  # type: ignore[arg-type]
            found, expected = load(tmp_path / f"{method}{which}").state_dict(), load(folders[which]).state_dict()
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_other_dtypes_are_told_and_the_task_models_is_written(folders: dict[str, Path], tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(folders["task"])
    half = write(tmp_path / "half", load(folders["task"]).to(torch.bfloat16), processor)
    mixed = folders | {"task": half}
    with pytest.warns(UserWarning, match=r"\d+ tensors are torch.bfloat16 in the task model and torch.float32"):
        merge(mixed, tmp_path / "out", SETTINGS["linear"])
    task, safety = load(half).state_dict(), load(folders["safety"]).state_dict()
    for key, tensor in load(tmp_path / "out").state_dict().items():
        assert tensor.dtype == torch.bfloat16
        expected = (0.7 * task[key].double() + 0.3 * safety[key].double()).to(torch.bfloat16)
        torch.testing.assert_close(tensor, expected, rtol=1e-2, atol=1e-4)


def test_provenance(folders: dict[str, Path], tmp_path: Path) -> None:
    audit = merge(folders, tmp_path / "out", SETTINGS["ties"])
    assert json.loads((tmp_path / "out" / "merge.json").read_text()) == json.loads(json.dumps(audit))
    assert audit["settings"]["method"] == "ties" and audit["settings"]["density"] == 0.4
    for folder in folders.values():
        for file in (*folder.glob("*.safetensors"), folder / "config.json"):
            assert audit["inputs"][str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()
    merge(folders | {"task": tmp_path / "out"}, tmp_path / "again", SETTINGS["linear"])
    assert json.loads((tmp_path / "again" / "merge.json").read_text())["task"] == str(tmp_path / "out")


def adapter(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    adapted = get_peft_model(load(base), LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    write(folder.with_name(folder.name + "-whole"), adapted.merge_and_unload(), AutoProcessor.from_pretrained(base))
    return folder


@pytest.mark.parametrize("name", ["linear", "slerp", "task_arithmetic", "ties"])
def test_adapters_of_different_rank_and_layers(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Two adapters, and either against a whole model, are what the merged models give."""
    base = folders["base"]
    one = adapter(base, tmp_path / "one", 1, r=4, target_modules=["q_proj", "down_proj"])
    two = adapter(base, tmp_path / "two", 2, r=2, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "linear_1"])
    expected = in_memory(
        {"base": base, "task": tmp_path / "one-whole", "safety": tmp_path / "two-whole"}, SETTINGS[name]
    )
    for number, (task, safety) in enumerate(((one, two), (one, tmp_path / "two-whole"), (tmp_path / "one-whole", two))):
        output = tmp_path / f"out{number}"
        audit = merge_checkpoints(task, safety, output, base, settings=SETTINGS[name])
        for key, tensor in load(output).state_dict().items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)
        changed = {entry["tensor"] for entry in audit["tensors"]}
        assert {key.rsplit(".", 2)[1] for key in changed} == {"q_proj", "down_proj", "linear_1"}
        assert AutoProcessor.from_pretrained(output).chat_template
    with pytest.raises(ValueError, match=r"holds a peft adapter; expected the model .*--base"):
        merge_checkpoints(one, two, tmp_path / "none", settings=SETTINGS["linear"])


def test_the_template_in_the_tasks_adapter_is_taken(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["base"]
    one, two = (adapter(base, tmp_path / name, seed, target_modules=["q_proj"]) for seed, name in enumerate("ab"))
    tokenizer = AutoProcessor.from_pretrained(base).tokenizer
    tokenizer.chat_template = "{# tuned #}"
    tokenizer.save_pretrained(one)
    for task, safety, expected in ((one, two, True), (two, one, False)):
        output = tmp_path / f"out-{task.name}"
        merge_checkpoints(task, safety, output, base, settings=MergeSettings("linear", 0.5))
        assert ((output / "chat_template.jinja").read_text() == "{# tuned #}") is expected


def test_the_sum_of_adapters_is_that_of_add_weighted_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    """peft's ``cat`` sets the factors side by side, which stands for the sum of what the adapters add."""
    base = folders["base"]
    paths = [adapter(base, tmp_path / name, seed, r=4, target_modules=["q_proj"]) for seed, name in enumerate("ab")]
    loaded = PeftModel.from_pretrained(load(base), paths[0], adapter_name="a")
    loaded.load_adapter(paths[1], adapter_name="b")
    loaded.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="cat")
    loaded.set_adapter("both")
    theirs = loaded.merge_and_unload().state_dict()
    merge_checkpoints(*paths, tmp_path / "out", base, settings=MergeSettings("task_arithmetic", 0.3))
    for key, tensor in load(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-5)


def test_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    for name, sign in (("base", 0.0), ("task", 4e4), ("safety", 4e4)):
        model = tiny_llama().to(torch.float16)
        model.model.norm.weight.data.fill_(sign)
        model.save_pretrained(tmp_path / name)
    twice = MergeSettings("task_arithmetic", weights=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"model.norm.weight: .*not finite"):
        models = {name: tmp_path / name for name in ("base", "task")} | {"safety": tmp_path / "moved"}
        tuned(load(tmp_path / "safety"), 1).save_pretrained(tmp_path / "moved")
        merge(models, tmp_path / "out", twice)


class Interruption(Exception):
    pass


@pytest.mark.parametrize("at", [0, 3])
def test_interrupted_and_continued_gives_the_same_files(
    at: int, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_merge, "_PART_BYTES", 20_000)
    merge(folders, tmp_path / "whole", SETTINGS["dare_ties"])
    original, written = PartialOutput.write_part, []

    def failing(self: PartialOutput, part: int, *rest: Any) -> None:
        if part == at and len(written) == at:
            raise Interruption
        written.append(part)
        original(self, part, *rest)

    monkeypatch.setattr(PartialOutput, "write_part", failing)
    with pytest.raises(Interruption):
        merge(folders, tmp_path / "out", SETTINGS["dare_ties"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="was started with other ratio"):
        merge(folders, tmp_path / "out", MergeSettings("dare_ties", 0.7, density=0.6))
    monkeypatch.setattr(PartialOutput, "write_part", lambda *call: written.append(call[1]) or original(*call))
    merge(folders, tmp_path / "out", SETTINGS["dare_ties"])
    assert written == sorted(set(written)) and len(written) > 4
    same = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "out")]
    assert same[0] == same[1]
