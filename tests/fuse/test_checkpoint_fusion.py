from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.model_folders import load, tuned, write
from support.tiny_mllms import evaluation_records, tiny_llava, training_records, write_llava_json
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, MixtralConfig, MixtralForCausalLM

from hpa_lightning import functional as F
from hpa_lightning.calibration import inverse_hessian_diagonals
from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
from hpa_lightning.callbacks.batches import valid_positions
from hpa_lightning.cli import main
from hpa_lightning.data import MLLMCollator
from hpa_lightning.fuse import checkpoint_fusion, fuse_checkpoints
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.diagonals import FusionOutput
from hpa_lightning.modules.blocks import find_decoder_blocks

RETENTION = RetentionSettings(p_min=20.0, p_max=40.0)
CALIBRATION = CalibrationSettings(safety_samples=3, task_samples=4, batch_size=2)
SAFETY, TASK = training_records(3, 1, "s"), training_records(4, 2, "t")
SETTINGS: dict[str, Any] = {"retention": RETENTION, "calibration": CALIBRATION}
LAYERS = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a model before and after tuning, sharded differently."""
    root = tmp_path_factory.mktemp("pair")
    model, processor = tiny_llava(LAYERS)
    before = write(root / "before", model, processor, "40KB")
    return before, write(root / "after", tuned(model), processor)


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


def contents(folder: Path, without: str = "") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != without}


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


def test_processor_is_taken_from_before_where_after_has_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    load(pair[1]).save_pretrained(tmp_path / "bare")
    fuse_checkpoints(pair[0], tmp_path / "bare", tmp_path / "out", SAFETY, TASK, **SETTINGS)
    found, expected = (AutoProcessor.from_pretrained(folder) for folder in (tmp_path / "out", pair[0]))
    assert found.chat_template == expected.chat_template
    assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        # linear_1 lies in the projector, and the vision tower has a q_proj too: merged, not fused
        {
            "target_modules": ["q_proj", "linear_1"],
            "use_rslora": True,
            "alpha_pattern": {"layers.1.self_attn.q_proj": 7},
        },
    ],
)
def test_adapter_equals_the_merged_model(options: dict[str, Any], pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = pair[0]
    adapted = get_peft_model(load(before), LoraConfig(r=4, lora_alpha=8, **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = write(tmp_path / "merged", adapted.merge_and_unload(), AutoProcessor.from_pretrained(before))
    audits = [
        fuse_checkpoints(before, after, tmp_path / name, SAFETY, TASK, **SETTINGS)
        for name, after in (("from_adapter", tmp_path / "adapter"), ("from_merged", merged))
    ]
    count = len(options["target_modules"]) * LAYERS if "use_rslora" not in options else LAYERS
    assert len(audits[0]["layers"]) == len(audits[1]["layers"]) == count
    kinds = ("module", "retained", "safety_focused", "task_focused", "shared")
    for left, right in zip(audits[0]["layers"], audits[1]["layers"], strict=True):
        assert [left[kind] for kind in kinds] == [right[kind] for kind in kinds]
    found, expected, base = (
        load(folder).state_dict() for folder in (tmp_path / "from_adapter", tmp_path / "from_merged", before)
    )
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
    moved = {name for name, weight in found.items() if not torch.equal(weight, base[name])}
    assert any("projector" in name for name in moved) == ("linear_1" in options["target_modules"])


def test_adapters_that_are_more_than_lora_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapted = get_peft_model(load(pair[0]), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    factors = load_file(tmp_path / "adapter_model.safetensors")

    def refused(match: str, tensors: dict[str, Tensor] | None = None, **settings: Any) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | settings))
        save_file(tensors or factors, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=match):
            fuse_checkpoints(pair[0], tmp_path, tmp_path / "out", SAFETY, TASK)

    refused("DoRA", use_dora=True)
    refused("modules_to_save", modules_to_save=["lm_head"])
    refused("peft_type 'LOHA'", peft_type="LOHA")
    refused("'pissa_niter_4', which changes the base", init_lora_weights="pissa_niter_4")
    refused("bias=all", bias="all")
    refused("lora_bias=True .a trained bias of the adapter", lora_bias=True)
    refused("alora_invocation_tokens=.1, 2. .activated LoRA", alora_invocation_tokens=[1, 2])
    refused("not known here: quantum_leap=3.*delete a setting", quantum_leap=3)
    refused("lora_alpha=many; expected a number", lora_alpha="many")
    refused("lora_magnitude_vector", factors | {"base_model.model.x.lora_magnitude_vector": torch.ones(2)})
    refused("is no linear layer", {key.replace("q_proj", "w_proj"): value for key, value in factors.items()})
    refused(
        "lora_B of .* alone", {key: value for key, value in factors.items() if "0.self_attn.q_proj.lora_A" not in key}
    )
    refused("do not fit", {key: value[:, :-1].clone() for key, value in factors.items()})
    refused("nothing to fuse")  # B is still zero
    for file in ("non_lora_trainables.bin", "vit.safetensors"):  # LLaVA's projector, ms-swift's vision tower
        (tmp_path / file).touch()
        refused(f"holds {file} beside the adapter's weights.*Merge all of it")
        (tmp_path / file).unlink()
    assert not (tmp_path / "out").exists()


# -- interruption ----------------------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "at", "when"),
    [
        (*place, when)
        for place in (
            ("copy_weights", ()),
            ("save_diagonals", ("safety", 1)),
            ("save_diagonals", ("task", 2)),
            ("write_part", (0,)),
            ("write_part", (2,)),
            ("finish", ()),
        )
        for when in ("before", "after")
        if (*place, when) != ("finish", (), "after")  # then it is complete
    ],
)
def test_interrupted_and_continued_gives_the_same_files(
    method: str, at: tuple, when: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[[str], Any] = lambda name: fuse_checkpoints(*pair, tmp_path / name, SAFETY, TASK, **SETTINGS)  # noqa: E731
    run("whole")
    original, calls = getattr(FusionOutput, method), []

    def interrupted(self: FusionOutput, *arguments: Any) -> Any:
        calls.append(arguments[: len(at)])
        if arguments[: len(at)] == at and when == "before":
            raise Interruption
        result = original(self, *arguments)
        if arguments[: len(at)] == at:
            raise Interruption
        return result

    monkeypatch.setattr(FusionOutput, method, interrupted)
    with pytest.raises(Interruption):
        run("broken")
    done = [call for call in calls if when == "after" or call != at]
    assert not (tmp_path / "broken").exists()
    with pytest.raises(ValueError, match="model_type"):  # there is no config.json
        AutoModelForImageTextToText.from_pretrained(tmp_path / "broken.partial")

    repeated: list[tuple] = []
    monkeypatch.setattr(
        FusionOutput, method, lambda self, *rest: repeated.append(rest[: len(at)]) or original(self, *rest)
    )
    run("broken")
    assert not at or not set(done) & set(repeated)  # what was finished is not done again
    assert at in repeated or when == "after"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert not (tmp_path / "broken.partial").exists()


def test_a_torn_write_is_repeated(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse_checkpoints(*pair, tmp_path / "whole", SAFETY, TASK, **SETTINGS)
    fuse, calls = F.harmonious_fusion, []

    def failing(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 10:  # in the middle of the second block: two of its layers are written
            raise Interruption
        return fuse(*arguments, **settings)

    monkeypatch.setattr(F, "harmonious_fusion", failing)
    for _ in range(2):
        try:
            fuse_checkpoints(*pair, tmp_path / "broken", SAFETY, TASK, **SETTINGS)
        except Interruption:
            assert len(calls) == 10
    assert len(calls) == 10 + 14
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_an_interrupted_run_is_not_continued_with_other_settings(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FusionOutput, "finish", lambda *_: (_ for _ in ()).throw(Interruption()))
        with pytest.raises(Interruption):
            fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    other = SETTINGS | {"retention": replace(RETENTION, p_max=30.0)}
    with pytest.raises(ValueError, match="begun with other retention"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **other)
    with pytest.raises(ValueError, match="begun with other records"):
        fuse_checkpoints(*pair, tmp_path / "out", TASK, SAFETY, **SETTINGS)


# -- diagonals -------------------------------------------------------------------------------------------------------


def test_saved_diagonals_give_the_same_output(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "diagonals.safetensors"
    fuse_checkpoints(*pair, tmp_path / "first", SAFETY, TASK, save_diagonals=file, **SETTINGS)
    with safe_open(file, "pt") as opened:
        everything = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    assert len(everything) == 2 * 7 * LAYERS
    save_file(
        {key: value for key, value in everything.items() if key.startswith("safety/")}, tmp_path / "half", metadata
    )

    loaded: list[Path] = []
    stream = checkpoint_fusion.StreamedModel
    monkeypatch.setattr(
        checkpoint_fusion,
        "StreamedModel",
        lambda source, device: loaded.append(source.folder) or stream(source, device),
    )
    fuse_checkpoints(*pair, tmp_path / "third", None, TASK, diagonals=tmp_path / "half", **SETTINGS)
    assert loaded == [pair[1]]
    fuse_checkpoints(*pair, tmp_path / "second", diagonals=file, **SETTINGS)
    assert loaded == [pair[1]]  # nothing was calibrated
    expected = contents(tmp_path / "first", "audit.json")
    assert contents(tmp_path / "second", "audit.json") == contents(tmp_path / "third", "audit.json") == expected

    for setting, value, message in (("damping", 0.1, r"damping 0\.01"), ("normalized", False, "normalized True")):
        changed = SETTINGS | {"calibration": replace(CALIBRATION, **{setting: value})}
        with pytest.raises(ValueError, match=f"made with {message}"):
            fuse_checkpoints(*pair, tmp_path / "out", diagonals=file, **changed)
    everything.pop(next(key for key in everything if "layers.1" in key))
    save_file(everything, file, metadata)
    with pytest.raises(ValueError, match="does not fit these models"):
        fuse_checkpoints(*pair, tmp_path / "out", diagonals=file, **SETTINGS)


# -- errors ----------------------------------------------------------------------------------------------------------


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


def test_models_that_do_not_belong_together_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = pair

    def refused(match: str, folder: Path) -> None:
        with pytest.raises(ValueError, match=match):
            fuse_checkpoints(before, folder, tmp_path / "out", SAFETY, TASK)

    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in after.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    refused("nothing to fuse", before)
    refused("no config.json", tmp_path)
    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Other"]}))
    refused("different models", other)
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    refused("quantised", other)
    text = config["text_config"] | {"intermediate_size": 64}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("has the shape", other)
    text = config["text_config"] | {"num_hidden_layers": LAYERS - 1}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("3 decoder blocks and the one after 2", other)
    text = config["text_config"] | {"hidden_act": "relu"}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("text_config.hidden_act .'silu' before, 'relu' after", other)

    index = copy("index") / "model.safetensors.index.json"
    shard = Checkpoint(after).tensors.stored["language_model.model.layers.1.mlp.up_proj.weight"].file
    tensors = load_file(index.parent / shard)
    tensors.pop("language_model.model.layers.1.mlp.up_proj.weight")
    save_file(tensors, index.parent / shard)
    refused(r"no tensor for \['model.language_model.layers.1.mlp.up_proj.weight'\]", index.parent)
    (index.parent / shard).write_bytes((after / shard).read_bytes()[:-5])
    refused("cut short", index.parent)
    (index.parent / shard).unlink()
    refused("no such file", index.parent)
    index.unlink()
    refused("neither model.safetensors nor", index.parent)
    assert not list(tmp_path.glob("out*"))


def test_existing_folders_are_not_touched(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK)
    theirs = tmp_path / "new.partial" / "somebody's"
    theirs.parent.mkdir()
    theirs.write_text("work")
    with pytest.raises(ValueError, match="no interrupted run"):
        fuse_checkpoints(*pair, tmp_path / "new", SAFETY, TASK)
    assert list(theirs.parent.iterdir()) == [theirs]


def test_one_process_at_a_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    progress = tmp_path / "out.partial" / "progress"
    progress.mkdir(parents=True)  # as a run leaves it that is killed at once
    with FileLock(progress / "lock"), pytest.raises(ValueError, match="another process"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    assert not progress.parent.exists() and not list((tmp_path / "out").glob("**/lock"))


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


def test_other_settings_of_the_model_are_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = pair[1] / "config.json"
    (tmp_path / "after").mkdir()
    for file in pair[1].iterdir():
        (tmp_path / "after" / file.name).symlink_to(file)
    (tmp_path / "after" / "config.json").unlink()
    content = json.loads(config.read_text())
    content["text_config"]["max_position_embeddings"] = 77
    (tmp_path / "after" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is a link to .* outside its folder"):
        Checkpoint(tmp_path / "after")
    for file in pair[1].iterdir():
        if file != config:
            (tmp_path / "after" / file.name).unlink()
            (tmp_path / "after" / file.name).write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match=r"text_config.max_position_embeddings \(\d+ before, 77 after\)"):
        fuse_checkpoints(pair[0], tmp_path / "after", tmp_path / "out", SAFETY, TASK, **SETTINGS)


def test_weights_that_have_to_be_joined_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    config = MixtralConfig(num_local_experts=2, num_attention_heads=2, num_key_value_heads=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has to be split or joined.*experts"):
        fuse_checkpoints(tmp_path / "model", tmp_path / "model", tmp_path / "out", SAFETY, TASK)


def test_a_full_disk_is_told_beforehand(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"needs \d+ MB; the disk has \d+ MB left"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    monkeypatch.undo()
    fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)  # and it goes on
    assert not (tmp_path / "out.partial").exists()


# -- the command -----------------------------------------------------------------------------------------------------


def test_command(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llava_json(tmp_path / "safety.json", SAFETY, tmp_path / "images")
    write_llava_json(tmp_path / "task.json", TASK, tmp_path / "images")
    arguments = ["fuse", "--before", str(pair[0]), "--after", str(pair[1]), "--output", str(tmp_path / "out")]
    arguments += ["--safety-data", str(tmp_path / "safety.json"), "--task-data", str(tmp_path / "task.json")]
    arguments += ["--image-folder", str(tmp_path / "images"), "--p-min", "20", "--p-max", "40"]
    arguments += ["--safety-samples", "3", "--task-samples", "4", "--batch-size", "2"]
    main(arguments)
    printed = capsys.readouterr().out
    assert f"{7 * LAYERS} linear layers fused" in printed
    assert "Of 3 safety answers only 0 read like refusals" in printed
    fuse_checkpoints(*pair, tmp_path / "same", SAFETY, TASK, **SETTINGS)
    assert contents(tmp_path / "out", "audit.json") == contents(tmp_path / "same", "audit.json")
    with pytest.raises(SystemExit, match=r"hpa-lightning fuse: .*exists already"):
        main(arguments)
