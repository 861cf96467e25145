"""Whether two checkpoints are of one model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from hpa_lightning.modules.tuned_linear import TunedLinear

# Entries of a configuration that say how a weight is read: equal shapes with other entries are other functions.
_SHAPE_THE_MODEL = {"num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation"}
# Before the name of a class that FSDP2 has sharded; transformers 4.56 and others write it into config.json.
_SHARDED = "FSDP"
# Entries that tuning, tokens that were added and the program that saved the model change without harm.
_MAY_DIFFER = re.compile(
    r"_.*|transformers_version|dtype|torch_dtype|use_cache|vocab_size|.*_token_(id|index)|.*dropout.*|id2label|label2id"
    r"|initializer_range|output_.*|tokenizer_.*|unsloth_.*|gradient_checkpointing"
)


def check_layers(linears: Sequence[Sequence[TunedLinear]], blocks: Sequence[int], names: Sequence[str]) -> None:
    """Check that two models have the same decoder blocks.

    Args:
        linears: the linear layers in the decoder blocks of each.
        blocks: number of decoder blocks of each.
        names: what they are called in messages.

    Raises:
        ValueError: another number of blocks, or linear layers of other names or shapes.
    """
    if blocks[0] != blocks[1]:
        raise ValueError(
            f"the model {names[0]} has {blocks[0]} decoder blocks and the one {names[1]} {blocks[1]}; expected the "
            "same model before and after tuning."
        )
    shapes = [{linear.name: tuple(linear.weight.shape) for linear in model} for model in linears]
    differ = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if differ:
        found = "; ".join(
            f"{name}: {shapes[0].get(name)} {names[0]}, {shapes[1].get(name)} {names[1]}" for name in differ[:3]
        )
        raise ValueError(f"{len(differ)} linear layers of the decoder blocks differ in shape ({found}).")


def check_architectures(configs: Sequence[PretrainedConfig], names: Sequence[str]) -> None:
    """Check that the configurations of two models are one architecture's.

    A configuration that names no class is that of its model type.

    Args:
        configs: of both.
        names: what they are called in messages.

    Raises:
        ValueError: another architecture.
    """
    kinds = [(config.model_type, config.architectures) for config in configs]
    named = [[name.removeprefix(_SHARDED) for name in names_of or ()] for _, names_of in kinds]
    if kinds[0][0] != kinds[1][0] or (all(named) and named[0] != named[1]):
        raise ValueError(f"{names[0]} and {names[1]} are different models: {kinds[0]} and {kinds[1]}.")


def check_settings(configs: Sequence[PretrainedConfig], names: Sequence[str], outcome: str) -> None:
    """Warn where the configurations of two models of one architecture differ, and refuse what makes another function.

    An entry that one of them leaves open (``None``) is no difference where it is the number that follows from the
    others, and only warned of elsewhere: programs differ in what they write out.

    Args:
        configs: of both.
        names: what they are called in messages.
        outcome: ends the warning: which of them the new model gets.

    Raises:
        ValueError: an entry differs that says how weights of the same shapes are read.
    """
    entries = [dict(_entries(_filled(config.to_dict()))) for config in configs]
    changed = {
        name: (entries[0].get(name), entries[1].get(name))
        for name in sorted({**entries[0], **entries[1]})
        if entries[0].get(name) != entries[1].get(name)
    }
    listed = [f"{name} ({old!r} {names[0]}, {new!r} {names[1]})" for name, (old, new) in changed.items()]
    fatal = [
        text
        for (name, values), text in zip(changed.items(), listed, strict=True)
        if name.rsplit(".", 1)[-1] in _SHAPE_THE_MODEL and None not in values
    ]
    if fatal:
        raise ValueError(
            f"the weights {names[0]} and {names[1]} mean different things: config.json differs in {fatal[0]}."
        )
    if changed:
        warnings.warn(
            f"config.json differs between {names[0]} and {names[1]} in {', '.join(listed)[:500]}; {outcome}",
            stacklevel=2,
        )


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the size of a head written out where it is left open."""
    filled = {name: _filled(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    size, heads = filled.get("hidden_size"), filled.get("num_attention_heads")
    if filled.get("head_dim") is None and isinstance(size, int) and isinstance(heads, int) and heads > 0:
        filled["head_dim"] = size // heads
    return filled


def _entries(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if _MAY_DIFFER.fullmatch(name):
            continue
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
