"""Whether two checkpoints are of one model: entries of a configuration that may differ, and those that may not."""

from __future__ import annotations

import warnings

import pytest
from transformers import LlamaConfig, Qwen2Config

from hpa_lightning.fuse.pairing import check_architectures, check_settings

NAMES = ("before", "after")


def config(**changes: object) -> LlamaConfig:
    return LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2, **changes)


def test_what_tuning_and_programs_change_is_not_told() -> None:
    other = config(attention_dropout=0.1, use_cache=False, eos_token_id=7, vocab_size=99, unsloth_version="1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings([config(), other], NAMES, "the new model gets the latter.")


def test_other_entries_are_told_with_both_values_and_the_outcome() -> None:
    with pytest.warns(UserWarning, match=r"rms_norm_eps \(1e-06 before, 1e-05 after\); the new model gets"):
        check_settings([config(), config(rms_norm_eps=1e-5)], NAMES, "the new model gets the latter.")


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu"}, {"head_dim": 16}])
def test_weights_of_equal_shapes_that_are_read_in_another_way_are_refused(changes: dict[str, object]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"the weights before and after mean different things: .*{name}"):
        check_settings([config(), config(**changes)], NAMES, "")


def test_another_architecture_is_refused() -> None:
    check_architectures([config(), config()], NAMES)
    with pytest.raises(ValueError, match=r"before and after are different models: \('llama', .*\('qwen2'"):
        check_architectures([config(), Qwen2Config()], NAMES)
