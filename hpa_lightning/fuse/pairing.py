"""Whether two checkpoints are the same model before and after tuning."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from hpa_lightning.modules.tuned_linear import TunedLinear

# Entries of a configuration that say how a weight is read: equal shapes with other entries are other functions.
_SHAPE_THE_MODEL = {"num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation"}
# Entries that tuning, tokens that were added and the program that saved the model change without harm.
_MAY_DIFFER = re.compile(
    r"_.*|transformers_version|dtype|torch_dtype|use_cache|vocab_size|.*_token_(id|index)|.*dropout.*|id2label|label2id"
    r"|initializer_range|output_.*|tokenizer_.*|unsloth_.*|gradient_checkpointing"
)


def check_pair(
    before: PretrainedConfig, after: PretrainedConfig, linears: Sequence[Sequence[TunedLinear]], blocks: Sequence[int]
) -> None:
    """Check that two models have the same decoder blocks, and warn where their configurations differ.

    Args:
        before, after: their configurations.
        linears: the linear layers in the decoder blocks of each.
        blocks: number of decoder blocks of each.

    Raises:
        ValueError: another architecture, another number of blocks, or linear layers of other names or shapes.
    """
    kinds = [(config.model_type, config.architectures) for config in (before, after)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"before and after are different models: {kinds[0]} and {kinds[1]}.")
    if blocks[0] != blocks[1]:
        raise ValueError(
            f"the model before has {blocks[0]} decoder blocks and the one after {blocks[1]}; expected the same model "
            "before and after tuning."
        )
    shapes = [{linear.name: tuple(linear.weight.shape) for linear in model} for model in linears]
    differ = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if differ:
        found = "; ".join(f"{name}: {shapes[0].get(name)} before, {shapes[1].get(name)} after" for name in differ[:3])
        raise ValueError(f"{len(differ)} linear layers of the decoder blocks differ in shape ({found}).")
    entries = [dict(_entries(config.to_dict())) for config in (before, after)]
    changed = {
        name: (entries[0].get(name), entries[1].get(name))
        for name in sorted({**entries[0], **entries[1]})
        if entries[0].get(name) != entries[1].get(name)
    }
    listed = [f"{name} ({old!r} before, {new!r} after)" for name, (old, new) in changed.items()]
    fatal = [text for name, text in zip(changed, listed, strict=True) if name.rsplit(".", 1)[-1] in _SHAPE_THE_MODEL]
    if fatal:
        raise ValueError(f"the weights before and after mean different things: config.json differs in {fatal[0]}.")
    if changed:
        warnings.warn(
            f"config.json differs before and after tuning in {', '.join(listed)[:500]}; the fused model gets the one "
            "after. Each calibration runs with its own.",
            stacklevel=2,
        )


def _entries(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if _MAY_DIFFER.fullmatch(name):
            continue
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
