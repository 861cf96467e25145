"""Files of records, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONVERSATION = [
    {"from": "human", "value": "What is this?\n<image>"},
    {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "Its colour?"},
    {"from": "gpt", "value": "red"},
]


def write(path: Path, rows: Any, lines: bool = False) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def row(index: int, answer: str = "yes") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Is {index} a number? ä€😀"}, {"from": "gpt", "value": answer}]
    return {"id": index, "conversations": turns}


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(item, ensure_ascii=index % 2 == 0) + "\n" for index, item in enumerate(rows))
