"""The table of what null-space projection has left of each layer's directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.report import write_report
from hpa_lightning.report.protection_table import protection_table
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import MISSING


def event(step: int, layer: int, module: str, **fields: Any) -> dict[str, Any]:
    place = {"step": step, "task": "AD", "layer": layer, "module": f"layers.{layer - 1}.{module}"}
    return {"event": "protection", **place, "columns": 50, "share": "output", **fields}


def test_one_row_for_each_task_and_block(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run("one")
    events = [
        event(0, 1, "q_proj", directions=5.0, energy=0.5, change=0.04),
        event(0, 1, "up_proj", directions=10.0, energy=0.7, change=0.05),
        event(0, 2, "q_proj", directions=0.0, energy=0.0, change=0.01),
        event(1, 1, "q_proj", directions=25.0),
        event(2, 1, "q_proj", directions=5.0, change=0.03),
    ]
    with (path / "results.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in events)
    table = protection_table(RunResults.from_file(path))
    assert table.columns == [
        "Task",
        "Block",
        "q_proj",
        "up_proj",
        "Energy held",
        "Largest change",
        "Root of squares so far",
    ]
    assert table.rows[0] == ["AD", 1, 10.0, 20.0, pytest.approx(60.0), *[pytest.approx(5.0)] * 2]
    assert table.rows[1][2:] == [0.0, MISSING, 0.0, *[pytest.approx(1.0)] * 2]
    assert table.rows[2][2:] == [50.0, MISSING, MISSING, MISSING, MISSING]
    assert table.rows[3][-2:] == [pytest.approx(3.0), pytest.approx(5.0)]  # of 4, nothing measured, and 3
    page = write_report([path], tmp_path / "report")["html"].read_text()
    assert "Directions left" in page and "Largest change" in page


def test_a_run_without_the_method_has_no_row(write_run: Callable[..., Path]) -> None:
    assert protection_table(RunResults.from_file(write_run("one"))).rows == []
