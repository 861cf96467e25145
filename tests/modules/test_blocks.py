"""The decoder blocks are found, and named where they are not."""

from __future__ import annotations

import pytest
from support.foreign_module import LanguageModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.modules.blocks import find_decoder_blocks


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


def test_a_frozen_reference_before_the_model_is_not_taken_for_it() -> None:
    class Preferences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
            self.ref = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).requires_grad_(False)
            self.vision_language_model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1))

    root = Preferences()
    assert find_decoder_blocks(root)[0] == "vision_language_model.model.layers"
    assert find_decoder_blocks(root.requires_grad_(False))[0] == "ref.model.layers"
