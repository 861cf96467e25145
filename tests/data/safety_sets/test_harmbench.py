"""HarmBench's CSV, with harmless texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_csv

from hpa_lightning.data import HarmBench


def row(identity: str, functional: str = "standard", context: str = "", **more: str) -> dict[str, Any]:
    return {
        "Behavior": f"Describe {identity}",
        "FunctionalCategory": functional,
        "SemanticCategory": "illegal",
        "Tags": "hash_check, book" if functional == "copyright" else "",
        "ContextString": context,
        "BehaviorID": identity,
        **more,
    }


ROWS = [row("a"), row("b", "contextual", "There is a\nkettle."), row("c", "copyright")]


def test_a_context_stands_before_its_behaviour(tmp_path: Path) -> None:
    records = HarmBench(str(write_csv(tmp_path / "hb.csv", ROWS))).read()
    assert [record.id for record in records] == ["a", "b"]
    assert records[1].prompt == "There is a\nkettle.\n\n---\n\nDescribe b"
    assert records[1].categories == {"functional": "contextual", "semantic": "illegal"}


def test_copyright_is_asked_for_and_told(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "hb.csv", ROWS))
    with pytest.warns(UserWarning, match="1 behaviours ask for copyrighted text"):
        assert len(HarmBench(path, ("standard", "contextual", "copyright")).read()) == 3


def test_broken_rows_are_told(tmp_path: Path) -> None:
    for bad, message in [
        (row("d", "contextual"), "'ContextString' is ''"),
        (row("d", "other"), "FunctionalCategory is 'other'"),
        (row("", "standard"), "'BehaviorID' is ''"),
    ]:
        with pytest.raises(ValueError, match=message):
            HarmBench(str(write_csv(tmp_path / "hb.csv", [*ROWS, bad]))).read()
    with pytest.raises(ValueError, match="expected some of"):
        HarmBench("hb.csv", ("nothing",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds no behaviours of contextual"):
        HarmBench(str(write_csv(tmp_path / "hb.csv", ROWS[:1])), ("contextual",)).read()
