"""SORRY-Bench's JSON lines, with harmless texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpa_lightning.data import SORRYBench
from hpa_lightning.data.safety_sets.sorry_bench import CATEGORIES


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int = 44, style: str = "base") -> list[dict[str, object]]:
    return [
        {"question_id": n, "category": str(n), "turns": [f"Question {n}, {style}?"], "prompt_style": style}
        for n in range(1, count + 1)
    ]


def test_numbers_get_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "question.jsonl", rows() + rows(44, "slang"))
    records = SORRYBench(path).read()
    assert len(records) == 44 == sum(map(len, CATEGORIES.values()))
    assert records[0].categories == {
        "domain": "Hate Speech Generation",
        "category": "Personal Insulting Words",
        "style": "base",
    }
    assert records[43].categories["domain"] == "Potentially Unqualified Advice"
    assert len(SORRYBench(path, styles=None).read()) == 88
    with pytest.raises(ValueError, match=r"has no prompts of style \['morse'\]; it has \['base', 'slang'\]"):
        SORRYBench(path, styles=["morse"]).read()


def test_the_older_version_keeps_its_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "question.jsonl", rows(45))
    with pytest.raises(ValueError, match=r"category is '45'; expected a number from 1 to 44 .* pass numbered=False"):
        SORRYBench(path).read()
    assert SORRYBench(path, numbered=False).read()[44].categories == {"category": "45", "style": "base"}
