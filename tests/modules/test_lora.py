from __future__ import annotations

import pytest
import torch
from support.foreign_module import LanguageModel
from torch import nn

from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.lora import LoraSettings, add_lora, lora_layers, merge_lora_, restart_lora_
from hpa_lightning.modules.tuned_linear import FullLinear, LoraLinear, check_linears, find_tuned_linears

TOKENS = torch.arange(12).view(2, 6)


def adapted(**settings: object) -> LanguageModel:
    torch.manual_seed(0)
    model = add_lora(LanguageModel().eval(), LoraSettings(rank=3, **settings))  # type: ignore[arg-type]
    assert isinstance(model, LanguageModel)
    return model


def train_b(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, factors in lora_layers(model):
            factors.lora_b.normal_(std=0.05, generator=generator)


def test_lora_covers_the_decoder_blocks_and_freezes_the_rest() -> None:
    model = adapted()
    assert len(list(lora_layers(model))) == 12
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name and "layers." in name for name in trained)


def test_target_modules_are_names_and_unknown_ones_are_refused() -> None:
    assert {name.rsplit(".", 1)[1] for name, _ in lora_layers(adapted(target_modules=["q_proj"]))} == {"q_proj"}
    with pytest.raises(ValueError, match=r"k_proj.*down_proj"):
        adapted(target_modules=["q_proj", "k_proj"])


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_merging_in_fp32_keeps_the_function(rank_stabilized: bool) -> None:
    model = adapted(rank_stabilized=rank_stabilized)
    train_b(model)
    with torch.no_grad():
        before = model(TOKENS)
        assert merge_lora_(model) == 12
        after = model(TOKENS)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert all(not factors.lora_b.any() for _, factors in lora_layers(model))
    assert (after - add_lora(LanguageModel().eval(), LoraSettings())(TOKENS)).abs().max() > 1e-3


def test_merging_a_bf16_base_rounds_once() -> None:
    model = adapted()
    train_b(model)
    for _, factors in lora_layers(model):
        factors.weight.data = factors.weight.data.bfloat16()
    expected = {
        name: (f.weight.double() + f.scaling * f.lora_b.double() @ f.lora_a.double()) for name, f in lora_layers(model)
    }
    merge_lora_(model)
    for name, factors in lora_layers(model):
        assert factors.weight.dtype == torch.bfloat16
        exact = expected[name]
        error = (factors.weight.double() - exact).abs()
        assert (error <= exact.abs() * 2**-8 + 1e-12).all()  # half a unit of bf16's 8-bit significand


def test_diverged_adapter_is_refused_and_nothing_is_merged() -> None:
    model = adapted()
    train_b(model)
    (_, first), *_, (_, last) = lora_layers(model)
    before = first.weight.detach().clone()
    with torch.no_grad():
        last.lora_b[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        merge_lora_(model)
    assert torch.equal(first.weight, before)


def test_restart_is_reproducible_and_changes_no_output() -> None:
    model = adapted()
    identities = [id(factors.lora_a) for _, factors in lora_layers(model)]
    with torch.no_grad():
        before = model(TOKENS)
        restart_lora_(model, torch.Generator().manual_seed(3))
        first = [factors.lora_a.clone() for _, factors in lora_layers(model)]
        assert torch.equal(model(TOKENS), before)
        train_b(model)
        restart_lora_(model, torch.Generator().manual_seed(3))
    for expected, (_, factors) in zip(first, lora_layers(model), strict=True):
        assert torch.equal(factors.lora_a, expected)
    assert identities == [id(factors.lora_a) for _, factors in lora_layers(model)]


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


def test_blocks_by_name_and_errors() -> None:
    model = LanguageModel()
    assert find_decoder_blocks(model)[0] == "layers"
    assert find_decoder_blocks(nn.ModuleDict({"inner": model}), "inner.layers")[1] == list(model.layers)
    with pytest.raises(ValueError, match=r"names no submodule.*layers"):
        find_decoder_blocks(model, "model.blocks")
    with pytest.raises(ValueError, match="expected a non-empty ModuleList"):
        find_decoder_blocks(model, "head")
    with pytest.raises(ValueError, match="no decoder blocks"):
        find_decoder_blocks(nn.Linear(2, 2))


def test_vision_towers_are_not_taken_for_the_language_model() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = LanguageModel(blocks=9)
            self.text = LanguageModel(blocks=2)

    assert find_decoder_blocks(Both())[0] == "text.layers"
