"""How the format of a file is told from its rows."""

from __future__ import annotations

from typing import Any

import pytest

from hpa_lightning.data.readers.row_fields import Reading
from hpa_lightning.data.readers.row_parsers import FORMATS, RowParser, parse_rows
from hpa_lightning.data.record import Record, message_text

QUESTION, ANSWER = "What is it?", "a cat"
ROWS: dict[str, dict[str, Any]] = {
    "LLaVA training file, ShareGPT": {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    },
    "ShareGPT in pairs": {"conversation": [{"human": QUESTION, "assistant": ANSWER}]},
    "chat": {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]},
    "LLaVA test file": {"question_id": 1, "text": QUESTION, "answer": ANSWER},
    "Alpaca": {"instruction": QUESTION, "output": ANSWER},
    "query and response": {"query": QUESTION, "response": ANSWER},
}


def test_every_format_has_a_row_here() -> None:
    assert ROWS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_the_keys_of_a_row_tell_its_format(name: str) -> None:
    record = RowParser().record({"id": "7", **ROWS[name]}, "row 0", Reading())
    assert message_text(record.messages[0]) == QUESTION
    assert ANSWER in (*record.answers, *(message_text(message) for message in record.messages[1:]))


def test_the_first_good_row_decides_for_all_and_errors_keep_their_place() -> None:
    torn = ValueError("row 0: torn")
    rows = [("row 0", torn), ("row 1", 3), ("row 2", {"id": 2, **ROWS["chat"]}), ("row 3", {"id": 3, **ROWS["Alpaca"]})]
    found = list(parse_rows(rows, "a.json", Reading()))
    assert [isinstance(one, Record) for one in found] == [False, False, True, False]
    assert found[0] is torn
    assert "row 1: unknown format, the record has int" in str(found[1])
    assert "row 3" in str(found[3]) and "messages" in str(found[3])


def test_a_row_of_no_format_says_what_it_has_and_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"row 0: unknown format, the record has \['prompt'\]; expected .*Alpaca: "):
        RowParser().record({"prompt": QUESTION}, "row 0", Reading())
    parser = RowParser()
    parser.record({"id": 1, **ROWS["chat"]}, "row 0", Reading())
    with pytest.raises(ValueError, match="row 1: a list; expected an object"):
        parser.record([], "row 1", Reading())
