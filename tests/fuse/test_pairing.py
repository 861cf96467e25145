"""Whether two checkpoints are of one model: entries of a configuration that may differ, and those that may not."""

from __future__ import annotations

import warnings

import pytest
from transformers import GemmaConfig, LlamaConfig, MixtralConfig, Qwen2Config

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


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [(MixtralConfig, {"head_dim": None}, {"head_dim": 8}), (Qwen2Config, {}, {"head_dim": 8})],
)
def test_the_size_of_a_head_may_be_left_open(kind: type, one: dict[str, object], other: dict[str, object]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings([kind(**sizes, **one), kind(**sizes, **other)], NAMES, "")
    with pytest.raises(ValueError, match=r"mean different things: .*head_dim \(8 before, 16 after\)"):
        check_settings([kind(**sizes, **one), kind(**sizes, head_dim=16)], NAMES, "")


def test_an_activation_that_one_of_them_leaves_open_is_told() -> None:
    with pytest.warns(UserWarning, match=r"hidden_activation \(None before, 'gelu_pytorch_tanh' after\)"):
        check_settings([GemmaConfig(), GemmaConfig(hidden_activation="gelu_pytorch_tanh")], NAMES, "")


def test_another_architecture_is_refused() -> None:
    check_architectures([config(), config()], NAMES)
    named, sharded = (config(architectures=[name]) for name in ("LlamaForCausalLM", "FSDPLlamaForCausalLM"))
    check_architectures([named, sharded], NAMES)  # as saved from a model that FSDP2 has sharded
    check_architectures([named, config()], NAMES)  # names no class
    with pytest.raises(ValueError, match=r"different models: .*Causal.*Sequence"):
        check_architectures([named, config(architectures=["LlamaForSequenceClassification"])], NAMES)
    with pytest.raises(ValueError, match=r"before and after are different models: \('llama', .*\('qwen2'"):
        check_architectures([config(), Qwen2Config()], NAMES)
