"""Preference pairs: either answer alone, numbers, and prompts that must be the same tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hpa_lightning.data.pairs import NumberedRecords, answered, check_same_prompt, number_of
from hpa_lightning.data.record import Record, assistant_turn, message_text, user_turn

EARLIER = user_turn("Hello") + assistant_turn("Hi") + user_turn("Why?")
PAIR = Record("a", EARLIER + assistant_turn("So."), rejected="No.", source="row 1")


@pytest.mark.parametrize(("rejected", "answer"), [(False, "So."), (True, "No.")])
def test_the_record_of_an_answer_learns_that_answer_alone(rejected: bool, answer: str) -> None:
    record = answered(PAIR, rejected)
    assert message_text(record.messages[-1]) == answer and record.rejected == ""
    assert [message.get("loss", True) for message in record.messages if message["role"] == "assistant"] == [False, True]
    assert [message_text(message) for message in record.messages[:-1]] == ["Hello", "Hi", "Why?"]
    left_out = replace(PAIR, messages=(*EARLIER, {**assistant_turn("So.")[0], "loss": False}))
    assert answered(left_out, False).messages[-1].get("loss", True) is True


def test_numbers_are_places_in_the_data_and_make_no_other_record() -> None:
    records = NumberedRecords([PAIR, replace(PAIR, id="b")])
    assert [number_of(record) for record in records] == [0, 1] and number_of(PAIR) == -1
    assert [number_of(record) for record in records[::-1]] == [1, 0]
    assert replace(records[0], number=9) == records[0]


def tokens(ids: list[int], start: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor(ids)
    labels[:start] = -100
    return torch.tensor(ids), labels


def test_both_answers_must_follow_the_same_tokens_and_differ() -> None:
    check_same_prompt(PAIR, tokens([1, 2, 3, 4], 2), tokens([1, 2, 5], 2))
    with pytest.raises(ValueError, match=r"row 1.*: the prompt has 2 tokens before the chosen answer and 3 before the"):
        check_same_prompt(PAIR, tokens([1, 2, 3, 4], 2), tokens([1, 2, 3, 5], 3))
    with pytest.raises(ValueError, match=r"row 1.*the prompt"):
        check_same_prompt(PAIR, tokens([1, 2, 3], 2), tokens([1, 9, 4], 2))
    with pytest.raises(ValueError, match="the chosen and the rejected answer are the same 2 tokens"):
        check_same_prompt(PAIR, tokens([1, 2, 3, 4], 2), tokens([1, 2, 3, 4], 2))
