"""LoRA: where it goes, merging, restart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from support.adapted_models import adapted
from support.foreign_module import LanguageModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.modules.lora import LoraSettings, add_lora, lora_layers, merge_lora_, restart_lora_
from hpa_lightning.modules.tuned_linear import find_tuned_linears

TOKENS = torch.arange(12).view(2, 6)


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


def tiny_llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, **settings)).eval()


def test_an_adapter_on_tied_embeddings_is_not_merged_into_both() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False), model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"lm_head: the adapter's base weight is that of model.embed_tokens, too;"):
        merge_lora_(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    untied = tiny_llama(tie_word_embeddings=False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False), untied)
    ids = torch.arange(12)[None]
    expected = untied(input_ids=ids).logits
    assert merge_lora_(untied) == 3
    torch.testing.assert_close(untied(input_ids=ids).logits, expected)


def test_an_adapter_on_an_embedding_is_refused_by_what_it_is() -> None:
    model = LanguageModel()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embedding", "q_proj"]), model)
    with pytest.raises(ValueError, match="embedding: LoRA on an embedding; expected it on linear layers alone"):
        merge_lora_(model)


def test_layers_that_peft_replicates_share_their_base() -> None:
    settings = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (0, 2)], init_lora_weights=False)
    model = get_peft_model(tiny_llama(), settings)
    message = r"layers\.0\.self_attn\.q_proj: the adapter's base weight is that of .*layers\.2\.self_attn\.q_proj"
    with pytest.raises(ValueError, match=message):
        merge_lora_(model)
    with pytest.raises(ValueError, match=message):
        find_tuned_linears(model)


def test_a_base_in_eight_bits_is_refused() -> None:
    """What transformers loads for FP8: linear layers whose weight is a float, and its scale another parameter."""
    model = adapted()
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    base = layer.get_base_layer()
    base.weight = nn.Parameter(base.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"with a torch.float8_e4m3fn weight; expected a plain, not quantised"):
        merge_lora_(model)
