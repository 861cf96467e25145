from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from peft import LoraConfig

from hpa_lightning.fuse.adapter_settings import HANDLED, HARMLESS, MORE_THAN_LORA, check_plain_lora

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
