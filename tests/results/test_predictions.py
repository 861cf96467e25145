"""Stored answers are one line each."""

from __future__ import annotations

import json
from pathlib import Path

from hpa_lightning.results.predictions import read_predictions


def test_answers_with_other_ends_of_lines_are_one_line(tmp_path: Path) -> None:
    """U+2028 stands in answers as it is, and `str.splitlines` cuts there."""
    (tmp_path / "predictions").mkdir()
    row = {"prompt": "a", "response": "one\u2028two\x85three"}
    (tmp_path / "predictions" / "step_00_a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (answers,) = read_predictions(tmp_path)
    assert answers.rows == (row,)
