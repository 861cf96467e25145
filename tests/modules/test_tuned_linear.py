"""Handles on tuned linear layers, with LoRA and without, and what they refuse."""

from __future__ import annotations

import pytest
from support.adapted_models import adapted
from support.foreign_module import LanguageModel
from torch.nn.utils import parametrizations, parametrize, prune

from hpa_lightning.modules.tuned_linear import FullLinear, LoraLinear, check_linears, find_tuned_linears


def test_handles_lora_and_full() -> None:
    blocks, handles = find_tuned_linears(adapted())
    assert len(blocks) == 3 and all(isinstance(handle, LoraLinear) for handle in handles)
    assert [handle.layer for handle in handles] == [1] * 4 + [2] * 4 + [3] * 4
    plain = LanguageModel()
    plain.layers[1].requires_grad_(False)
    _, handles = find_tuned_linears(plain, target_modules=["q_proj", "down_proj"])
    assert all(isinstance(handle, FullLinear) for handle in handles)
    assert [handle.name for handle in handles] == [f"layers.{i}.{n}" for i in (0, 2) for n in ("q_proj", "down_proj")]
    with pytest.raises(ValueError, match=r"gate_proj"):
        find_tuned_linears(plain, target_modules=["gate_proj"])


def test_shared_weights_are_refused() -> None:
    model = LanguageModel()
    model.layers[1].q_proj.weight = model.layers[0].q_proj.weight
    with pytest.raises(ValueError, match="share one weight"):
        check_linears(find_tuned_linears(model)[1])


@pytest.mark.parametrize("how", ["prune", "weight_norm"])
def test_weights_that_are_computed_are_refused(how: str) -> None:
    """torch computes them anew before each forward pass, from what a callback would not have written."""
    model = LanguageModel()
    layer = model.layers[1].up_proj
    if how == "prune":
        prune.l1_unstructured(layer, "weight", amount=0.3)
    else:
        parametrizations.weight_norm(layer)
    with pytest.raises(ValueError, match=r"layers.1.up_proj: its weight is computed from other parameters"):
        find_tuned_linears(model)
    if how == "prune":
        prune.remove(layer, "weight")
    else:
        parametrize.remove_parametrizations(layer, "weight")
    assert len(find_tuned_linears(model)[1]) == 12


def test_a_base_that_is_trained_beside_its_adapter_is_refused() -> None:
    model = adapted()
    model.layers[1].q_proj.base_layer.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layers.1.q_proj: the base weight is trained beside its adapter"):
        find_tuned_linears(model)


def test_two_adapters_are_refused() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = adapted()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model, adapter_name="second")
    with pytest.raises(ValueError, match="exactly one adapter"):
        find_tuned_linears(model)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "the LoRA variant DoraLinearVariant"),
        ({"alora_invocation_tokens": [1]}, "the LoRA variant ALoraLinearVariant"),
        ({"lora_bias": True}, r"an adapter bias \(lora_bias\)"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_its_name(options: dict, named: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = LanguageModel()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options), model)
    with pytest.raises(ValueError, match=rf"layers.0.q_proj: {named}; expected plain LoRA"):
        find_tuned_linears(model)
