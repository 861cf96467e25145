"""What a processor makes of texts and pictures, in words that a checkpoint can hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hpa_lightning.data.resuming import described
from hpa_lightning.data.template import reads_text_alone, tokenizer_of

_OF_THE_PROCESSOR = (
    "patch_size",
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
    "image_seq_length",
    "image_tokens",
    "data_config",
)
"""Attributes of processors, transformers' and timm's, that decide how many tokens a picture is and how it is scaled."""
_NAMES = frozenset(
    {"processor_class", "image_processor_type", "auto_map", "device", "return_tensors", "disable_grouping"}
)
"""Entries of an image processor's settings that change with the version or the machine, and not what it makes."""


def processor_settings(processor: Any) -> dict[str, Any]:
    """Return what decides the tokens and the pixels that a model gets; the chat template apart.

    Args:
        processor: a Hugging Face processor, :class:`~hpa_lightning.modules.timm_processor.TimmProcessor`, or a
            tokenizer.

    Returns:
        ``"tokens"``: size and digest of the vocabulary with its special tokens; with pictures ``"image"``: the settings
        of the image processor, such as its sizes.
    """
    tokenizer = tokenizer_of(processor)
    vocabulary = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    content = json.dumps([sorted(vocabulary.items()), special], sort_keys=True).encode()
    found: dict[str, Any] = {
        "tokens": f"{len(vocabulary)} tokens, {hashlib.blake2b(content, digest_size=8).hexdigest()}"
    }
    if reads_text_alone(processor):
        return found
    image: dict[str, Any] = {}
    to_dict = getattr(getattr(processor, "image_processor", None), "to_dict", None)
    given = to_dict() if callable(to_dict) else None
    if isinstance(given, Mapping):
        image = {key: described(value) for key, value in given.items() if key[:1] != "_" and key not in _NAMES}
    for name in _OF_THE_PROCESSOR:
        if getattr(processor, name, None) is not None:
            image[name] = described(getattr(processor, name))
    return {**found, "image": image}


def shared_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two results of :func:`processor_settings` without what only one of them knows.

    An entry that a newer version of transformers has brought is no other setting.

    >>> shared_settings({"tokens": "a", "image": {"size": 1}}, {"tokens": "a", "image": {"size": 2, "pad": 3}})
    ({'tokens': 'a', 'image': {'size': 1}}, {'tokens': 'a', 'image': {'size': 2}})
    """
    both = [name for name in saved if name in now]
    one, other = ({name: side[name] for name in both} for side in (saved, now))
    for name in both:
        if isinstance(saved[name], Mapping) and isinstance(now[name], Mapping):
            one[name], other[name] = shared_settings(saved[name], now[name])
    return one, other
