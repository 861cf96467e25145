"""Rows of the benchmark's files: LLaVA's training and test schema, and tables of prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpa_lightning.data.record import Record, message_text
from hpa_lightning.files import write_text

Row = dict[str, Any]


def training_row(identity: str, question: str, answer: str, picture: str | None = None) -> Row:
    """Return ``{"id", "image", "conversations"}``, without ``image`` where there is no picture."""
    mark = "" if picture is None else "<image>\n"
    turns = [{"from": "human", "value": f"{mark}{question}"}, {"from": "gpt", "value": answer}]
    return {"id": identity, **({} if picture is None else {"image": picture}), "conversations": turns}


def question_row(identity: str, question: str, answer: str, picture: str) -> Row:
    """Return ``{"question_id", "image", "text", "answer"}``."""
    return {"question_id": identity, "image": picture, "text": question, "answer": answer}


def row_of(record: Record, place: Callable[[str], str]) -> Row:
    """Return the training row of a record with one question and its answer.

    Args:
        record: with at most one picture, a path.
        place: turns that path into the one that the row has.
    """
    question, answer = (message_text(message) for message in record.messages)
    return training_row(record.id, question, answer, place(record.images[0]) if record.images else None)


def prompt_row(record: Record, place: Callable[[str], str]) -> Row:
    """Return the row of a table of prompts: ``id``, ``prompt``, ``image`` (or null), and the categories."""
    image = place(record.images[0]) if record.images else None
    return {"id": record.id, "prompt": record.prompt, "image": image, **record.categories}


def write_rows(path: Path, rows: Sequence[Row]) -> int:
    """Write rows as a JSON list and return how many there are."""
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return len(rows)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines and return how many there are."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return len(lines)
