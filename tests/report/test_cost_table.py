"""What methods cost, by hand: minutes by phase, the ratio by seed, memory where it is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.study_cells import cell, two_tasks

from hpa_lightning.report.cost_table import cost_table
from hpa_lightning.report.study_report import StudyCell, StudyGroup, write_study_report
from hpa_lightning.results.run_results import RunResults


def timed(method: str, seed: int, seconds: dict[str, float], peak: int | None = None) -> StudyCell:
    run = two_tasks(0.9, 0.8, 0.5, 0.4)
    times = [
        {"event": "time", "step": step, "phase": phase, "seconds": spent / 2}
        for phase, spent in seconds.items()
        for step in (0, 1)
    ]
    end = {"event": "end", "finished_tasks": 2, "tasks": 2, **({} if peak is None else {"peak_memory": peak})}
    return cell(method, seed, RunResults([*run.records, *times, end]))


def cells() -> list[StudyCell]:
    return [
        timed("plain", 1, {"train": 120, "evaluate": 60}, 2_000_000_000),
        timed("plain", 2, {"train": 240, "evaluate": 60}, 4_000_000_000),
        timed("ours", 1, {"train": 150, "prepare": 30, "calibrate": 30, "fuse": 30, "evaluate": 90, "drift": 30}),
        timed("ours", 3, {"train": 180, "gate": 60, "shared": 6}),
    ]


def test_costs_by_hand() -> None:
    table = cost_table(cells(), "plain")
    headings = ["Method", "Seeds", "Training, min", "Method, min", "Scoring, min", "To PLAIN", "Memory, GB"]
    assert list(table.columns) == headings
    plain, ours = table.rows
    assert [plain[0], plain[1], ours[0], ours[1]] == ["PLAIN", 2, "OURS", 2]
    assert [value.mean for value in plain[2:]] == [3.0, 0.0, 1.0, 1.0, 3.0]
    assert [value.mean for value in ours[2:6]] == [2.75, 1.25, 1.05, 2.0]  # the ratio: seed 1 alone, 240 s to 120
    assert math.isnan(ours[6])


def test_without_a_reference_there_is_no_ratio() -> None:
    table = cost_table(cells(), None)
    assert len(table.columns) == 6 and all(len(row) == 6 for row in table.rows)


def test_a_reference_that_was_not_run_leaves_dashes() -> None:
    table = cost_table(cells()[2:], "plain")
    assert math.isnan(table.rows[0][5])


@pytest.mark.parametrize("shown", [False, True])
def test_a_group_that_asks_for_costs_has_the_table(shown: bool, tmp_path: Path) -> None:
    group = StudyGroup("g", "G", "", cells(), "plain", command="c")
    found = write_study_report([replace(group, costs=shown)], tmp_path)["markdown"].read_text()
    assert ("| Method | Seeds | Training, min | Method, min | Scoring, min | To PLAIN | Memory, GB |" in found) is shown
