"""Conversations in the forms that other programs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpa_lightning.data import Record, read_records

IMAGE, YES = {"type": "image"}, {"role": "assistant", "content": "yes"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def read(folder: Path, *rows: Any, **options: Any) -> list[Record]:
    (folder / "t.json").write_text(json.dumps(list(rows)))
    return read_records(folder / "t.json", **options)


def contents(record: Record) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(message["role"], message["content"]) for message in record.messages]


# The documented forms of LLaMA-Factory (data/README.md) and ms-swift (Custom-dataset.md), each the same conversation.
TURNS = ["What is it?", "a cat", "<image>And this?", "a dog"]

SHAREGPT = [{"from": who, "value": value} for who, value in zip(["human", "gpt"] * 2, TURNS, strict=True)]

MESSAGES = [{"role": who, "content": value} for who, value in zip(["user", "assistant"] * 2, TURNS, strict=True)]


def part(value: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [value, text("Is it red?")]}, YES]}
