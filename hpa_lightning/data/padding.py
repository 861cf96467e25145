"""Padded batches: the attention mask says where the tokens are, never an assumed side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hpa_lightning.data.record import Record


@contextmanager
def padding_on(tokenizer: Any, side: str) -> Iterator[None]:
    """Pad on ``side``, with the end-of-sequence token where there is no padding token; put both back after."""
    before, pad_token = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = side
    if pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has neither a pad_token nor an eos_token to pad with; set one.")
        tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.padding_side = before
        if pad_token is None:
            tokenizer.pad_token = None


def pad_on(side: str, batch: Mapping[str, Tensor], records: Sequence[Record]) -> dict[str, Tensor]:
    """Return the batch with its padding on ``side``, whichever side the processor chose.

    Some processors pad on a side of their own whatever they are told. Each row is turned until its tokens begin or end
    the sequence; every tensor with one entry for each token turns with it.

    Args:
        side: ``"right"`` or ``"left"``.
        batch: with ``input_ids`` and ``attention_mask``, ``(batch, tokens)``.
        records: of the rows, for messages.

    Raises:
        ValueError: named by the record, if its tokens are not one stretch; named by all, if the mask does not fit.
    """
    mask = batch["attention_mask"]
    if mask.shape != batch["input_ids"].shape or mask.shape[0] != len(records):
        raise ValueError(
            f"{_names(records)}: the processor returned input_ids {tuple(batch['input_ids'].shape)} and an "
            f"attention_mask {tuple(mask.shape)} for {len(records)} records; expected one row for each record."
        )
    kept, length = mask.bool(), mask.shape[1]
    counts = kept.sum(dim=1)
    first = kept.long().argmax(dim=1)
    for row, record in enumerate(records):
        start, count = int(first[row]), int(counts[row])
        if count == 0 or not bool(kept[row, start : start + count].all()):
            raise ValueError(
                f"{record.where}: the attention mask has gaps or no token; which tokens are padding is unknown."
            )
    shift = first if side == "right" else first + counts - length
    if not bool(shift.any()):
        return dict(batch)
    order = (torch.arange(length) + shift[:, None]) % length
    rows = torch.arange(len(records))[:, None]
    return {key: value[rows, order] if counts_tokens(batch, key) else value for key, value in batch.items()}


def counts_tokens(batch: Mapping[str, Tensor], key: str) -> bool:
    """Whether the tensor has one entry for each token: ``(batch, tokens, ...)`` and no floating-point numbers."""
    value, shape = batch[key], batch["input_ids"].shape
    return value.ndim >= 2 and value.shape[:2] == shape and not value.is_floating_point()


def cut_right(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Return the first ``length`` tokens of a right-padded batch."""
    return {key: value[:, :length] if counts_tokens(batch, key) else value for key, value in batch.items()}


def _names(records: Sequence[Record]) -> str:
    return ", ".join(record.where for record in records)
