"""Answers before and after are those to one sample."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.report.answers_page import write_answers

Rows = list[dict[str, Any]]


def row(sample: Any, prompt: str = "", **more: Any) -> dict[str, Any]:
    named = {} if sample is None else {"id": sample}
    return {**named, "prompt": prompt or f"prompt {sample}", "response": f"answer to {prompt or sample}", **more}


def page(folder: Path, before: Rows, after: Rows, **options: Any) -> list[list[str]]:
    """The texts of every sample on the page: its prompt and its answers."""
    (folder / "predictions").mkdir()
    run = {"event": "run", "method": "m", "tasks": ["t"], "sets": [{"name": "harm", "kind": "safety"}]}
    (folder / "results.jsonl").write_text(json.dumps(run) + "\n")
    for step, rows in enumerate((before, after)):
        file = folder / "predictions" / f"step_{step:02d}_harm.jsonl"
        file.write_text("".join(json.dumps(item) + "\n" for item in rows))
    text = write_answers(folder, unfinished=True, **options).read_text()
    articles = re.findall(r"<article.*?</article>", text, re.S)
    return [re.findall(r"(?:prompt|answer to) \w+", article) for article in articles]


def test_answers_are_paired_by_their_sample(tmp_path: Path) -> None:
    found = page(tmp_path, [row("a"), row("b"), row(3)], [row(3), row("a"), row("b")], limit=2)
    assert found == [["prompt 3", "answer to 3", "answer to 3"], ["prompt a", "answer to a", "answer to a"]]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([row("a"), row("b")], [row("b"), row("c")]),
        ([row("a")], [row("a"), row("c")]),
        ([row("a"), row("c")], [row("a")]),
        ([row("a", "prompt x")], [row("a", "prompt y")]),
        ([row(None, "x"), row(None, "x")], [row(None, "x")]),
    ],
)
def test_answers_to_other_samples_are_refused(before: Rows, after: Rows, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"answers to 'harm' before and after are to different samples: \d of them"):
        page(tmp_path, before, after)


def test_samples_that_share_an_id_and_a_prompt_are_paired_in_order(tmp_path: Path) -> None:
    twice = [row("a", response="answer to first"), row("a", response="answer to second")]
    assert [found[1:] for found in page(tmp_path, twice, twice)] == [
        ["answer to first", "answer to first"],
        ["answer to second", "answer to second"],
    ]
