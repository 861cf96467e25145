"""Files of preference pairs, and what is read from them as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpa_lightning.data.record import check_pair, message_text


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(records: list[Any]) -> list[tuple[str, str]]:
    for record in records:
        check_pair(record)
    return [(message_text(record.messages[-1]), record.rejected) for record in records]
