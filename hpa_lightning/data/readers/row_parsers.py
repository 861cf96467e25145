"""Rows of a data file as records: the formats, and how one is distinguished from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from hpa_lightning.data.readers.chat import parse_chat
from hpa_lightning.data.readers.instructions import parse_instruction, parse_query
from hpa_lightning.data.readers.llava import parse_conversations, parse_pairs, parse_question
from hpa_lightning.data.readers.row_fields import Reading
from hpa_lightning.data.record import Record, check_record
from hpa_lightning.values import names

Parser = Callable[[Mapping[str, Any], str, Reading], Record]

#: name -> (keys that a record of the format has, parser)
FORMATS: dict[str, tuple[tuple[str, ...], Parser]] = {
    "LLaVA training file, ShareGPT": (("conversations",), parse_conversations),
    "ShareGPT in pairs": (("conversation",), parse_pairs),
    "chat": (("messages",), parse_chat),
    "LLaVA test file": (("text", "question_id"), parse_question),
    "Alpaca": (("instruction", "output"), parse_instruction),
    "query and response": (("query", "response"), parse_query),
}


class RowParser:
    """Makes records of rows; the format of all is inferred from the first row that has one."""

    def __init__(self) -> None:
        self._parse: Parser | None = None

    def record(self, row: Any, where: str, reading: Reading) -> Record:
        """Return the record of a row, checked.

        Args:
            row: what is in the file; an error in its place is raised.
            where: the row, for messages.
            reading: how the file is read; notes what is not.

        Raises:
            ValueError: named by ``where``.
        """
        self._parse = self._parse or _parser_of(valid(row), where)
        if not isinstance(valid(row), Mapping):
            raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
        reading.next_record()
        record = self._parse(row, where, reading)
        check_record(record)
        return record


def parse_rows(rows: Iterable[tuple[str, Any]], name: str, reading: Reading) -> Iterator[Record | ValueError]:
    """The record of every row, or what is wrong with it; the format is inferred from the first good one.

    Args:
        rows: where each row is, and the row, or an error in its place.
        name: of the file, for the warning of what is not read.
        reading: how to read it.
    """
    parser = RowParser()
    for where, row in rows:
        try:
            yield parser.record(row, where, reading)
        except ValueError as error:
            yield error
    reading.warn(name)


def valid(found: Any) -> Any:
    """What was found, unless it is an error, which is raised."""
    if isinstance(found, ValueError):
        raise found
    return found


def _parser_of(row: Any, where: str) -> Parser:
    keys = names(sorted(map(str, row))) if isinstance(row, Mapping) else type(row).__name__
    if isinstance(row, Mapping):
        for needed, parse in FORMATS.values():
            if all(key in row for key in needed):
                return parse
    expected = "; ".join(f"{name}: {', '.join(needed)}" for name, (needed, _) in FORMATS.items())
    raise ValueError(f"{where}: unknown format, the record has {keys}; expected one with these keys: {expected}.")
