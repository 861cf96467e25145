"""Stored answers are one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.results.predictions import read_predictions


def test_answers_with_other_ends_of_lines_are_one_line(tmp_path: Path) -> None:
    """U+2028 stands in answers as it is, and `str.splitlines` cuts there."""
    (tmp_path / "predictions").mkdir()
    row = {"prompt": "a", "response": "one\u2028two\x85three"}
    (tmp_path / "predictions" / "step_00_a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (answers,) = read_predictions(tmp_path)
    assert answers.rows == (row,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", None),
        ("images", "../a.jpg"),
        ("images", [3]),
        ("references", 3),
        ("references", "red"),
        ("categories", []),
        ("categories", {"domain": ["fraud"]}),
        ("verdict", "no"),
        ("score", "1"),
        ("question", 3),
        ("id", ["a"]),
        ("log_likelihoods", ["-1"]),
        ("cut", 2),
    ],
)
def test_what_nobody_writes_under_a_key_is_named(key: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    row = {"prompt": "a", "response": "b", key: value}
    (tmp_path / "predictions" / "step_00_a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"step_00_a\.jsonl, line 1: '{key}' is .*; expected (a|an|true)[, ]"):
        list(read_predictions(tmp_path))
