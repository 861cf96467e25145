"""Drift in the report of a study: moments within tasks count, on the sets of each column, from one start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from hpa_lightning.report.drift_prediction import drift_columns_table, moments_of, sets_left_out
from hpa_lightning.report.study_drift import plot_study_drift, profiles_of
from hpa_lightning.report.study_report import StudyCell, StudyGroup, write_study_report
from hpa_lightning.results.events import (
    CurveEvent,
    DriftEvent,
    DriftPromptsEvent,
    RunEvent,
    ScoreEvent,
    WeightDriftEvent,
)
from hpa_lightning.results.run_results import RunResults

COLUMNS = {"Text ASR": ["spoken"], "Multimodal ASR": ["shown"], "Skill": ["task"]}


def curved_run(seed: int) -> RunResults:
    """Text attack success rises with the drift of block 2, multimodal with that of the weights, within the task too."""
    generator = np.random.default_rng(seed)
    kinds = {"task": "task", "spoken": "safety", "shown": "safety", "typeset": "safety", "harmless": "over_refusal"}
    sets = tuple({"name": name, "kind": kind} for name, kind in kinds.items())
    events = [RunEvent(method="m", seed=seed, tasks=("task",), sets=sets)]
    events.append(DriftPromptsEvent(sets={"harmful": 8}, first=2, last=2))
    for step in (-1, 0):
        drift, moved = (0.0, 0.0) if step < 0 else generator.uniform(0.1, 0.8, 2)
        values = {"task": 0.5, "spoken": 0.1 + drift, "shown": 0.2 + moved, "typeset": 1.0, "harmless": 0.0}
        for name, kind in kinds.items():
            score = ScoreEvent(step=step, set=name, kind=kind, metric="m", score=float(values[name]), n=10)
            events.append(score)
        if step == 0:
            events += moment("end", 30, float(drift), float(moved))
    for at in (0, 10, 20, 30):
        drift, moved = (0.0, 0.0) if at == 0 else generator.uniform(0.1, 0.8, 2)
        for name, value in (("spoken", 0.1 + drift), ("shown", 0.2 + moved)):
            events.append(
                CurveEvent(
                    step=0,
                    optimizer_step=at,
                    moment="start" if at == 0 else "end" if at == 30 else "step",
                    task="task",
                    set=name,
                    kind="safety",
                    metric="m",
                    score=float(value),
                    n=10,
                )
            )
        if at in (10, 20):
            events += moment("train", at, float(drift), float(moved))
    return RunResults([event.record() for event in events], Path(f"run{seed}/results.jsonl"))


def moment(phase: str, at: int, drift: float, moved: float) -> list[DriftEvent | WeightDriftEvent]:
    cosine = (0.5, 1 - drift, 0.9)
    return [
        DriftEvent(step=0, at=at, phase=phase, set="harmful", n=8, cosine=cosine),
        WeightDriftEvent(step=0, at=at, phase=phase, blocks=(0.1, moved, 0.1), modules={}),
    ]


def test_moments_within_tasks_count_on_the_sets_that_are_asked_for() -> None:
    runs = [curved_run(seed) for seed in range(4)]
    text, shown = moments_of(runs, ["spoken"]), moments_of(runs, ["shown"])
    assert len(text) == 4 * 3, "two steps within the task and its end"
    for one in text:
        assert one.rise == pytest.approx(one.measures["harmful prompts, safety layers"])
    for one in shown:
        assert one.rise == pytest.approx(one.measures["weights, safety layers"])
    both = moments_of(runs)  # the curve has two of the three safety sets: these count, at the ends too
    assert [one.rise for one in both] == pytest.approx(
        [(one.rise + other.rise) / 2 for one, other in zip(text, shown, strict=True)]
    )
    ends = moments_of(runs, ["typeset"])
    assert len(ends) == 4 and all(one.rise == 0 for one in ends), "the curve does not have that set"

    table = drift_columns_table(runs, COLUMNS)
    assert list(table.columns) == ["Drift of", "MASR", "Text ASR", "Multimodal ASR"]
    found = {str(row[0]): row[1:] for row in table.rows}
    assert str(found["harmful prompts, safety layers"][1]).startswith("1.00 (1.00 to 1.00)")
    assert str(found["weights, safety layers"][2]).startswith("1.00")
    rho = spearmanr([m.measures["weights, all blocks"] for m in text], [m.rise for m in text]).statistic
    assert str(found["weights, all blocks"][1]).startswith(f"{rho:.2f}")


def test_a_study_shows_drift_of_the_runs_of_one_start(tmp_path: Path) -> None:
    cells = [StudyCell("plain", "Plain", "", seed, curved_run(seed), start="first") for seed in range(3)]
    cells += [StudyCell("later", "Later", "", seed, curved_run(10 + seed), start="plain") for seed in range(3)]
    group = StudyGroup("g", "G", "", cells, "plain", columns=COLUMNS)
    written = write_study_report([group], tmp_path)
    page = written["markdown"].read_text()
    assert "without the sets that were not measured within tasks (`SafetyCurve`): `typeset` in all of the runs." in page
    whole = RunResults([one for one in curved_run(7).records if one["event"] != "curve"])
    assert sets_left_out([whole, cells[0].run]).endswith("`typeset` in 1 of the runs.") and not sets_left_out([whole])
    assert "over 3 runs that start with the same model" in page and "| Drift of | MASR | Text ASR |" in page
    assert (tmp_path / "figures" / "g-drift.png").stat().st_size > 1000

    profile = profiles_of(cells[0].run)
    assert set(profile) == {"harmful", "weights"} and len(profile["harmful"]) == 3
    figure = plot_study_drift({"Plain": [cell.run for cell in cells[:3]]}, {"Plain": 0})
    assert figure is not None and [line.get_label() for line in figure.axes[0].get_lines()][:1] == ["Plain"]
    heights = figure.axes[0].get_lines()[0].get_ydata()
    assert list(heights) == pytest.approx(np.mean([profiles_of(cell.run)["harmful"] for cell in cells[:3]], axis=0))
    bare = RunResults([event.record() for event in cells[0].run.events(RunEvent)], "x")
    assert plot_study_drift({"Bare": [bare]}, {"Bare": 0}) is None
