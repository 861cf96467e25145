"""Hidden states at a prompt's last token, of real architectures."""

from __future__ import annotations

import pytest
import torch
from support.tiny_mllms import tiny_llava, tiny_qwen, training_records

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.modules import MLLMModule
from hpa_lightning.prompt_states import prompt_states


def prompts(size: int, seed: int) -> list[Record]:
    return training_records(size, seed=seed)


@pytest.mark.parametrize("architecture", [tiny_llava, tiny_qwen])
def test_hidden_states_are_those_at_the_last_prompt_token(architecture: type) -> None:
    """Left padding and batching do not count; the blocks' outputs are what transformers calls hidden states."""
    model, processor = architecture(layers=3)
    module = MLLMModule.from_objects(model, processor)
    module.train()
    collator = MLLMCollator(processor)
    records = [*prompts(4, 3), Record("short", user_turn("hi"))]
    states = prompt_states(module, collator, records, 3, None)
    assert states.shape == (5, 3, 32) and module.training and module.model.training
    assert not any(block._forward_hooks for block in model.model.language_model.layers)
    model.eval()
    for record, state in zip(records, states, strict=True):
        inputs = collator.generate([record])["inputs"]
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        for layer in (1, 2):  # the last one of transformers' is normalised
            torch.testing.assert_close(state[layer - 1], hidden[layer][0, -1], rtol=1e-4, atol=1e-5)
