"""One instruction and its answer a row: Alpaca's form and ms-swift's."""

from __future__ import annotations

from typing import Any

import pytest

from hpa_lightning.data.readers.instructions import parse_instruction, parse_query
from hpa_lightning.data.record import Record, message_text


def turns(record: Record) -> list[tuple[str, str]]:
    return [(message["role"], message_text(message)) for message in record.messages]


def test_the_input_stands_below_the_instruction_and_the_history_before_both() -> None:
    row = {"id": 1, "instruction": "Translate.", "input": "Haus", "output": "house", "system": "Be brief."}
    found = turns(parse_instruction({**row, "history": [["Hello", "Hi"]]}, "row"))
    pairs = [("user", "Hello"), ("assistant", "Hi"), ("user", "Translate.\nHaus"), ("assistant", "house")]
    assert found == [("system", "Be brief."), *pairs]
    assert turns(parse_instruction({**row, "input": ""}, "row"))[1] == ("user", "Translate.")
    assert turns(parse_query({"id": 1, "query": "Hello", "response": "Hi"}, "row")) == pairs[:2]


def test_a_test_row_ends_with_its_question() -> None:
    assert turns(parse_query({"id": 1, "query": "Hello", "response": None}, "row")) == [("user", "Hello")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": [["Hello"]]}, "row: 'history' is .* expected a list of pairs of texts"),
        ({"history": "Hello"}, "row: 'history' is 'Hello'"),
        ({"instruction": " ", "input": ""}, "row: the prompt is empty"),
        ({"output": 3}, "row: .*output"),
    ],
)
def test_broken_rows_are_named(change: dict[str, Any], message: str) -> None:
    row = {"id": 1, "instruction": "Translate.", "input": "Haus", "output": "house"}
    with pytest.raises(ValueError, match=message):
        parse_instruction({**row, **change}, "row")
