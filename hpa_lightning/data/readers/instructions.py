"""One instruction and its answer a row: Alpaca's form, and ms-swift's `query` and `response`."""

from __future__ import annotations

from hpa_lightning.data.readers.llava import record_of
from hpa_lightning.data.readers.row_fields import COMMON_KEYS, Reading, text_in
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import Turn
from hpa_lightning.data.record import Record
from hpa_lightning.values import shown


def parse_instruction(row: Row, where: str, reading: Reading | None = None) -> Record:
    """Return the record of ``{"instruction", "input", "output", "system", "history", "images"}``.

    The prompt is the instruction, and on a line below it the input if there is one. ``history`` holds the earlier pairs
    of prompt and answer.

    Raises:
        ValueError: named by ``where``.
    """
    reading = reading or Reading()
    reading.note_unread(row, COMMON_KEYS | {"instruction", "input", "output", "history"}, where)
    texts = [text for key in ("instruction", "input") if (text := text_in(row, key, where))]
    return _record(row, "\n".join(texts), "output", where, reading)


def parse_query(row: Row, where: str, reading: Reading | None = None) -> Record:
    """Return the record of ``{"query", "response", "system", "history", "images"}``.

    Raises:
        ValueError: named by ``where``.
    """
    reading = reading or Reading()
    reading.note_unread(row, COMMON_KEYS | {"query", "response", "history"}, where)
    return _record(row, text_in(row, "query", where), "response", where, reading)


def _record(row: Row, prompt: str, answer: str, where: str, reading: Reading) -> Record:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(_is_pair(pair) for pair in history):
        raise ValueError(f"{where}: 'history' is {shown(history)}; expected a list of pairs of texts.")
    if not prompt.strip():
        raise ValueError(f"{where}: the prompt is empty; expected a text.")
    pairs = [*history, [prompt, text_in(row, answer, where)]]
    turns = [Turn.of_text(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    if row.get(answer) is None:
        turns.pop()  # a test file's: the answers stand elsewhere
    return record_of(row, turns, where, reading)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
