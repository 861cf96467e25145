"""Runs that start with the model of another run are no runs of the aligned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.study_cells import cell, results

import hpa_lightning.report.study_report as study_report
from hpa_lightning.report.plots import plot_curves, plot_trade_off
from hpa_lightning.report.study_report import StudyCell, StudyGroup, step_table, write_study_report
from hpa_lightning.results.run_results import RunResults


def run_from(before: float) -> RunResults:
    """A run of which the model before the first task had this attack success."""
    return results([[0.9, 0.0], [0.5, 0.8]], [before, 0.4, 0.6])


def cells() -> list[StudyCell]:
    later = [replace(cell("repaired", seed, run_from(0.6)), start="plain") for seed in (1, 2, 3)]
    return [*(cell("plain", seed, run_from(0.05)) for seed in (1, 2, 3)), *later]


def test_the_line_of_the_aligned_model_is_of_the_runs_that_start_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: dict[str, Any] = {}

    def keep(figure: Any, path: Path) -> None:
        figures[path.stem] = figure
        path.write_bytes(b"PNG")

    monkeypatch.setattr(study_report, "save_figure", keep)
    group = StudyGroup("g", "G", "", cells(), matrices=["plain", "repaired"])
    page = write_study_report([group], tmp_path)["markdown"].read_text()
    ax = figures["g-trade-off"].axes[0]
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert list(line.get_xdata()) == pytest.approx([5.0, 5.0])
    assert "MASR of the aligned model" in [text.get_text() for text in ax.texts]
    rows = {name: figures[f"g-matrix-{name}"].axes[0].get_yticklabels()[0].get_text() for name in ("plain", "repaired")}
    assert rows == {"plain": "aligned", "repaired": "start"}
    assert figures["g-steps"].axes[1].get_xticklabels()[0].get_text() == "start"
    assert "| MASR % | start | after digits |" in page
    said = "Before their first task these are the model that the run of PLAIN of the same seed ended with: REPAIRED. "
    assert page.count(f"{said}The others are the aligned model.") == 1

    alone = write_study_report([replace(group, cells=cells()[3:], matrices=[])], tmp_path)["markdown"].read_text()
    assert "ended with: REPAIRED." in alone and "The others" not in alone
    assert not [line for line in figures["g-trade-off"].axes[0].lines if line.get_linestyle() == "--"]


def test_of_one_start_the_table_says_aligned() -> None:
    assert step_table(cells()[:3]).columns[1] == "aligned" and step_table(cells()).columns[1] == "start"


def test_a_report_of_runs_that_start_differently_has_a_line_for_each_start() -> None:
    def lines(*starts: float) -> dict[float, str]:
        (ax,) = plot_trade_off([run_from(start) for start in starts]).axes
        return {line.get_xdata()[0]: line.get_label() for line in ax.lines if line.get_linestyle() == "--"}

    assert lines(0.05, 0.05) == {5.0: "MASR of the aligned model"}
    several = lines(0.05, 0.6, 0.05)
    assert set(several) == {5.0, 60.0}, "and not their mean"


def test_a_task_behind_one_without_a_test_set_is_not_learnt_before_its_turn() -> None:
    sets = [{"name": "A", "kind": "task"}, {"name": "B", "kind": "task"}]
    records: list[dict[str, Any]] = [{"event": "run", "method": "x", "tasks": ["tuning", "A", "B"], "sets": sets}]
    records += [
        {"event": "score", "step": step, "set": name, "kind": "task", "metric": "m", "score": 0.5}
        for step in (-1, 0, 1, 2)
        for name in ("A", "B")
    ]
    upper, _ = plot_curves(RunResults(records)).axes
    solid = {line.get_label(): list(line.get_xdata()) for line in upper.lines if line.get_linestyle() == "-"}
    assert solid["A"] == [1, 2] and solid["B"] == [2]
