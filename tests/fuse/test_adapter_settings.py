from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from support.tiny_mllms import tiny_llava

from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.adapter_settings import HANDLED, HARMLESS, MORE_THAN_LORA, check_plain_lora
from hpa_lightning.fuse.streaming import empty_model

# Fields of earlier versions of peft, which adapters still carry.
GONE = {"merge_weights", "enable_lora"}


def test_every_setting_of_the_installed_peft_is_judged() -> None:
    groups = [HANDLED, HARMLESS, set(MORE_THAN_LORA)]
    judged = set().union(*groups)
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - judged == set(), "peft has new settings: does each leave W + scaling * B @ A as it is?"
    assert sum(map(len, groups)) == len(judged)  # each stands in one group
    assert judged >= GONE


def test_variants_that_peft_itself_marks_are_refused() -> None:
    marked = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    if not marked:
        pytest.skip("this peft marks none (before 0.20)")
    assert marked <= set(MORE_THAN_LORA)


def test_the_defaults_are_plain_lora() -> None:
    settings = LoraConfig(target_modules=["q_proj"]).to_dict() | {"peft_type": "LORA", "merge_weights": False}
    check_plain_lora(settings, "adapter_config.json")
    check_plain_lora({"peft_type": "LORA", "r": 8, "enable_lora": None}, "an adapter of an early version")


@pytest.mark.parametrize("name", sorted(MORE_THAN_LORA))
def test_what_is_more_than_lora_is_refused_by_its_name(name: str) -> None:
    value: Any = {"bias": "lora_only", "alora_invocation_tokens": [5], "modules_to_save": ["lm_head"]}.get(name, True)
    with pytest.raises(ValueError, match=rf"says {name}=.*merged folder"):
        check_plain_lora({"peft_type": "LORA", name: value}, "adapter_config.json")


@pytest.mark.parametrize(
    "initialised", ["pissa", "pissa_niter_16", "olora", "OLoRA", "loftq", "corda", "lora_ga", "new"]
)
def test_initialisations_that_change_the_base_or_are_new_are_refused(initialised: str) -> None:
    with pytest.raises(ValueError, match=f"init_lora_weights='{initialised}', (which changes|an initialisation)"):
        check_plain_lora({"peft_type": "LORA", "init_lora_weights": initialised}, "adapter_config.json")


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
        with pytest.raises(ValueError, match=f"adapts {module}, (whose weight .* shares|which is no linear layer)"):
            checkpoint.bind(empty_model(checkpoint.config, checkpoint.dtype))
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config.json holds a list"):
        AdaptedCheckpoint(tmp_path / "base", tmp_path / "adapter")
