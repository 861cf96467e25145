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
from hpa_lightning.table import format_cell


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


def test_times_of_other_threads_are_shown_and_not_compared() -> None:
    """Sixteen threads are no gain of the method."""
    one, two, *ours = cells()
    ours = [replace(ours[0], threads=16), replace(ours[0], seed=2, threads=1)]
    with pytest.warns(UserWarning, match=r"no ratio: PLAIN: 1; OURS: 16, 1\.$") as told:
        table = cost_table([replace(one, threads=1), replace(two, threads=1), *ours], "plain")
    assert len(told) == 1 and [row[2] for row in table.rows] == ["1", "16, 1"] and table.columns[2] == "Threads"
    assert table.rows[1][6] == (1.0, pytest.approx(math.nan, nan_ok=True)), "seed 2 alone, 240 s to 240"
    only = [replace(one, threads=1), replace(ours[0], threads=16)]
    with pytest.warns(UserWarning, match="have no ratio"):
        assert format_cell(cost_table(only, "plain").rows[1][6]) == "–"


def test_what_was_not_recorded_is_missing_and_not_zero() -> None:
    untimed = cell("plain", 1, two_tasks(0.9, 0.8, 0.5, 0.4))
    broken = timed("plain", 1, {"train": 120})
    broken.run.records[-2]["seconds"] = None
    for one, shown in (
        (untimed, ["–", "–", "–", "–"]),
        (replace(broken, run=RunResults(broken.run.records)), ["–", "0.00", "0.00", "–"]),
    ):
        (row,) = cost_table([one], "plain").rows
        assert [format_cell(value) for value in row[2:6]] == shown


def test_memory_of_some_of_the_runs_says_of_how_many() -> None:
    runs = [timed("plain", 1, {"train": 60}, 2_000_000_000), timed("plain", 2, {"train": 60})]
    (row,) = cost_table([*runs, timed("plain", 3, {"train": 60}, 4_000_000_000)], None).rows
    assert row[1] == 3 and str(row[-1]) == "3.00 ± 12.71 (of 2 seeds)"


@pytest.mark.parametrize("shown", [False, True])
def test_a_group_that_asks_for_costs_has_the_table(shown: bool, tmp_path: Path) -> None:
    group = StudyGroup("g", "G", "", cells(), "plain", command="c")
    found = write_study_report([replace(group, costs=shown)], tmp_path)["markdown"].read_text()
    assert ("| Method | Seeds | Training, min | Method, min | Scoring, min | To PLAIN | Memory, GB |" in found) is shown
