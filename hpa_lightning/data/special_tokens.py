"""The special tokens that a tokenizer adds to a text by itself, around what a chat template has written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from tokenizers.processors import TemplateProcessing


def added_around(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the ids that a fast tokenizer adds in front of ``text`` and behind it."""
    found = tokenizer(text, return_special_tokens_mask=True)
    ids, mask = found["input_ids"], found["special_tokens_mask"]
    front = sum(1 for _ in takewhile(bool, mask))
    behind = sum(1 for _ in takewhile(bool, reversed(mask[front:])))
    return ids[:front], ids[len(ids) - behind :]


@contextmanager
def adding_in_front_alone(tokenizer: Any, front: list[int], behind: list[int]) -> Iterator[None]:
    """Let the tokenizer add ``front`` and leave out ``behind``, see :func:`added_around`; put it back after."""
    if not (front and behind):  # nothing to leave out, or nothing to add: `add_special_tokens=False` does that
        yield
        return
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    tokens = tokenizer.convert_ids_to_tokens(front)
    backend.post_processor = TemplateProcessing(
        single="FRONT $A", special_tokens=[{"id": "FRONT", "ids": front, "tokens": tokens}]
    )
    try:
        yield
    finally:
        backend.post_processor = before
