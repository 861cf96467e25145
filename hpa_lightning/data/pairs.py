"""Preference pairs in batches: the chosen and the rejected answer to one prompt, checked token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from hpa_lightning.data.record import Record, assistant_turn
from hpa_lightning.data.sequences import RecordSequence

PAIR_NUMBERS = "pair_numbers"
"""Key of a batch of pairs: where each pair is in its training data, ``(pairs,)`` int64; -1 where it is not known.

The other tensors hold the chosen answers' sequences, then the rejected ones' in the same order."""

_IGNORED = -100


@dataclass(frozen=True)
class NumberedRecord(Record):
    """A record that knows where it is in its training data."""

    number: int = field(default=-1, kw_only=True, compare=False)


class NumberedRecords(RecordSequence):
    """The records of another sequence, each with its index: stored figures of a pair are found by it.

    >>> NumberedRecords([Record("a", ()), Record("b", ())])[1].number
    1
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        """Return the record at an index from 0 on."""
        record = self._records[index]
        values = {item.name: getattr(record, item.name) for item in fields(Record)}
        return NumberedRecord(**values, number=index)


def number_of(record: Record) -> int:
    """Return where the record is in its training data, or -1."""
    return record.number if isinstance(record, NumberedRecord) else -1


def answered(record: Record, rejected: bool) -> Record:
    """Return the record that ends with the chosen or the rejected answer, of which no earlier answer is learnt."""
    last = assistant_turn(record.rejected) if rejected else record.messages[-1:]
    before = tuple(
        {**message, "loss": False} if message["role"] == "assistant" else message for message in record.messages[:-1]
    )
    messages = (*before, {key: value for key, value in last[0].items() if key != "loss"})
    return replace(record, messages=messages, rejected="")


def check_same_prompt(record: Record, chosen: tuple[Tensor, Tensor], rejected: tuple[Tensor, Tensor]) -> None:
    """Check the two token sequences of a pair, each as ids and labels without padding, ``(tokens,)``.

    Raises:
        ValueError: named by the record: the prompt's tokens depend on the answer, or both answers are the same tokens.
    """
    starts = [int((labels != _IGNORED).int().argmax()) for _, labels in (chosen, rejected)]
    prompts = [ids[:start] for (ids, _), start in zip((chosen, rejected), starts, strict=True)]
    if not torch.equal(*prompts):
        raise ValueError(
            f"{record.where}: the prompt has {starts[0]} tokens before the chosen answer and {starts[1]} before the "
            "rejected one, or others; the two log-probabilities would be of different prompts. Use a chat template "
            "with a token boundary before the answer."
        )
    answers = [labels[labels != _IGNORED] for _, labels in (chosen, rejected)]
    if torch.equal(*answers):
        raise ValueError(f"{record.where}: the chosen and the rejected answer are the same {len(answers[0])} tokens.")
