"""Checkpoints that are adapters: as the merged model, and what is more than LoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from support.fused_checkpoints import LAYERS, SAFETY, SETTINGS, TASK
from support.model_folders import load, write
from support.tiny_mllms import tiny_llava
from torch import Tensor
from transformers import AutoProcessor, LlamaForCausalLM

from hpa_lightning.fuse import fuse_checkpoints, fusion_calibration
from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.processor_files import read_processor
from hpa_lightning.fuse.streaming import empty_model


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
    refused("is not a linear layer", {key.replace("q_proj", "w_proj"): value for key, value in factors.items()})
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


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        pytest.param(
            {"init_lora_weights": "mica"},
            marks=pytest.mark.skipif(not hasattr(LoraLayer, "mica_init"), reason="this peft has no MiCA"),
        ),
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "use_rslora": True},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"exclude_modules": ["v_proj"], "lora_dropout": 0.5},
    ],
)
def test_harmless_settings_equal_what_peft_merges(options: dict[str, Any], tmp_path: Path) -> None:
    model, _ = tiny_llava(2)
    model.save_pretrained(tmp_path / "base")
    if options.get("init_lora_weights") == "mica" and Version(version("peft")) < Version("0.20"):
        pytest.skip("this peft does not know it")
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(tmp_path / "adapter")
    checkpoint = AdaptedCheckpoint(tmp_path / "base", tmp_path / "adapter")
    checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
    merged = adapted.merge_and_unload().state_dict()
    assert checkpoint.adapted
    for name in checkpoint.adapted:
        torch.testing.assert_close(checkpoint.tensor(name), merged[name], rtol=1e-5, atol=1e-6)


def test_an_alpha_that_no_layer_goes_by_is_told(tmp_path: Path) -> None:
    model, _ = tiny_llava(2)
    model.save_pretrained(tmp_path / "base")
    pattern = {"q_porj": 64, "layers.1.self_attn.q_proj": 2, "^model.language_model.layers.0.self_attn.q_proj": 3}
    config = LoraConfig(target_modules=r".*language_model.*q_proj", alpha_pattern=pattern)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    checkpoint = AdaptedCheckpoint(tmp_path / "base", tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"alpha_pattern names \['q_porj'\].*model.*q_proj.*lora_alpha=8") as told:
        for _ in range(2):
            checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
    assert len([one for one in told if "alpha_pattern" in str(one.message)]) == 1


def renamed(adapter: Path, name: Callable[[str], str], target: Path) -> Path:
    """A copy of an adapter whose tensors have other names."""
    target.mkdir()
    (target / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    factors = load_file(adapter / "adapter_model.safetensors")
    save_file({name(key): factor for key, factor in factors.items()}, target / "adapter_model.safetensors")
    return target


def test_names_that_programs_write_other_than_peft(tmp_path: Path) -> None:
    """Of each peft loads nothing: the way out is not to merge with it, which gives the base."""
    model, _ = tiny_llava(1)
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    weight = "model.language_model.layers.0.self_attn.q_proj.weight"

    def opened(number: int, name: Callable[[str], str]) -> AdaptedCheckpoint:
        folder = renamed(tmp_path / "adapter", name, tmp_path / str(number))
        checkpoint = AdaptedCheckpoint(tmp_path / "base", folder)
        checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
        return checkpoint

    compiled = [lambda key: f"_orig_mod.{key}", lambda key: key.replace("model.model.", "model._orig_mod.model.", 1)]
    found = [opened(number, name).tensor(weight) for number, name in enumerate(compiled)]
    merged = adapted.merge_and_unload().state_dict()[weight]
    for tensor in found:
        torch.testing.assert_close(tensor, merged)
    for number, name in enumerate(
        [
            lambda key: key.removeprefix("base_model.model."),
            lambda key: key.replace(".weight", ".default.weight"),
            lambda key: f"module.{key}",
        ],
        start=2,
    ):
        with pytest.raises(ValueError, match=r"lora_[AB]\..*expected base_model.model.LAYER.*loads nothing.*rename"):
            opened(number, name)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for number, name in enumerate([lambda key: f"_orig_mod.{key}", old_layout], start=5):
        folder = renamed(tmp_path / "adapter", name, tmp_path / str(number))
        both = factors | load_file(folder / "adapter_model.safetensors")
        save_file(both, folder / "adapter_model.safetensors")
        checkpoint = AdaptedCheckpoint(tmp_path / "base", folder)
        with pytest.raises(ValueError, match=r"which are one (tensor|layer); remove one"):
            checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))


def test_an_adapter_of_the_language_model_alone_says_what_to_rename(tmp_path: Path) -> None:
    """As tuned on the text model before it got its vision tower; so renamed it gives what peft merges there."""
    model, _ = tiny_llava(1)
    model.save_pretrained(tmp_path / "base")
    text = LlamaForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    adapted = get_peft_model(text, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    checkpoint = AdaptedCheckpoint(tmp_path / "base", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapts model\.layers\.0.*rename its tensors from '(.+)' to '(.+)'") as told:
        checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
    old, new = re.findall(r"'(base_model[^']+)'", str(told.value))
    folder = renamed(tmp_path / "adapter", lambda key: key.replace(old, new), tmp_path / "renamed")
    checkpoint = AdaptedCheckpoint(tmp_path / "base", folder)
    checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
    merged = adapted.merge_and_unload().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(checkpoint.tensor("model.language_model.layers.0.self_attn.q_proj.weight"), merged)


def old_layout(key: str) -> str:
    """A name in LLaVA as transformers before 4.52 has it."""
    return key.replace("model.language_model.", "language_model.model.")


def test_adapters_on_tied_weights_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    model, _ = tiny_llava(1)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    factors = load_file(file)
    embedding = model.get_input_embeddings().weight
    head = {"lora_A": torch.ones(2, embedding.shape[1]), "lora_B": torch.ones(embedding.shape[0], 2)}
    for module in ("lm_head", "model.language_model.embed_tokens"):
        save_file(factors | {f"base_model.model.{module}.{key}.weight": value for key, value in head.items()}, file)
        checkpoint = AdaptedCheckpoint(tmp_path / "base", tmp_path / "adapter")
        with pytest.raises(ValueError, match=f"adapts {module}, (whose weight .* shares|which is not a linear layer)"):
            checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config.json holds a list"):
        AdaptedCheckpoint(tmp_path / "base", tmp_path / "adapter")


def test_the_processor_in_the_adapters_folder_is_taken(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trl leaves tokenizer and template beside the adapter: the model was tuned with these."""
    adapted = get_peft_model(load(pair[0]), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    processor = AutoProcessor.from_pretrained(pair[0])
    template = processor.chat_template
    processor.tokenizer.chat_template = {"default": "{# tuned #}" + template, "tool_use": "{# tools #}" + template}
    processor.tokenizer.save_pretrained(tmp_path / "adapter")
    collator, used = fusion_calibration.MLLMCollator, []

    def collating(processor: Any, *rest: Any) -> Any:
        used.append(processor.chat_template)
        return collator(processor, *rest)

    monkeypatch.setattr(fusion_calibration, "MLLMCollator", collating)
    fuse_checkpoints(pair[0], tmp_path / "adapter", tmp_path / "out", SAFETY, TASK, **SETTINGS)
    assert [str(one).count("{# tuned #}") for one in used] == [0, 1]  # the safety inputs run through the model before
    assert (tmp_path / "out" / "chat_template.jinja").read_text().startswith("{# tuned #}")
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").read_text().startswith("{# tools #}")
    assert (tmp_path / "out" / "processor_config.json").is_file()  # of the base: the adapter has none
    processor.tokenizer.add_tokens([f"<new{number}>" for number in range(1000)])
    processor.tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"a tokenizer of .* tokens.*embeddings for .*: tokens were added"):
        fuse_checkpoints(pair[0], tmp_path / "adapter", tmp_path / "other", SAFETY, TASK, **SETTINGS)


def test_a_template_of_the_base_does_not_hide_the_adapters(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Programs before transformers 5 write the template into tokenizer_config.json; a file of the base came first."""
    adapted = get_peft_model(load(pair[0]), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    settings = json.loads((pair[0] / "tokenizer_config.json").read_text())
    (tmp_path / "adapter" / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{# tuned #}"}))
    found = read_processor(AdaptedCheckpoint(pair[0], tmp_path / "adapter"))
    assert (getattr(found, "chat_template", None) or found.tokenizer.chat_template) == "{# tuned #}"
    (tmp_path / "adapter" / "tokenizer_config.json").unlink()
    assert "{# tuned #}" not in read_processor(AdaptedCheckpoint(pair[0], tmp_path / "adapter")).chat_template
