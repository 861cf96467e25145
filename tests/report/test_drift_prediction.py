"""Which drift tells the loss of safety, on runs whose answer is planted; against SciPy's rank correlation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from hpa_lightning.report.drift_plots import plot_drift, safety_layers_of
from hpa_lightning.report.drift_prediction import correlations, drift_table, has_drift, moments_of
from hpa_lightning.report.run_page import render_page
from hpa_lightning.results.events import DriftEvent, DriftPromptsEvent, RunEvent, ScoreEvent, WeightDriftEvent
from hpa_lightning.results.run_results import RunResults

TASKS = ("one", "two", "three")


def drifting_run(seed: int, gap: bool = True) -> RunResults:
    """Attack success rises with the drift of block 2 alone; the other blocks and the weights drift at random."""
    generator = np.random.default_rng(seed)
    sets = ({"name": "harm", "kind": "safety"}, *({"name": task, "kind": "task"} for task in TASKS))
    events = [RunEvent(method="m", seed=seed, tasks=TASKS, sets=sets)]
    events.append(DriftPromptsEvent(sets={"harmful": 8}, first=2 if gap else None, last=2 if gap else None))
    score = lambda step, asr: ScoreEvent(  # noqa: E731
        step=step, set="harm", kind="safety", metric="attack_success_rate", score=asr, n=10
    )
    events.append(score(-1, 0.05))
    for step, drift in enumerate(generator.uniform(0.1, 0.9, len(TASKS))):
        at, noise = 10 * (step + 1), generator.uniform(0, 0.5, 4)
        events.append(score(step, 0.05 + drift))
        events += [ScoreEvent(step=step, set=t, kind="task", metric="exact_match", score=0.5) for t in TASKS]
        cosine = (1 - float(noise[0]), 1 - float(drift), 1 - float(noise[1]))
        events.append(DriftEvent(step=step, at=at, phase="train", set="harmful", n=8, cosine=(0.0, 0.0, 0.0)))
        events.append(DriftEvent(step=step, at=at, phase="end", set="harmful", n=8, cosine=cosine))
        weights = WeightDriftEvent(step=step, at=at, phase="end", blocks=(0.1, float(noise[2]), 0.1), modules={})
        events.append(weights)
    return RunResults([event.record() for event in events], Path(f"run{seed}/results.jsonl"))


def test_the_planted_blocks_tell_and_the_others_do_not() -> None:
    runs = [drifting_run(seed) for seed in range(6)]
    moments = moments_of(runs)
    assert len(moments) == 18
    best, *others = correlations(moments, draws=200)
    assert best.measure == "harmful prompts, safety layers"
    assert best.rho == pytest.approx(1.0) and best.low == pytest.approx(1.0)
    for other in others:
        values = [moment.measures[other.measure] for moment in moments]
        assert other.rho == pytest.approx(spearmanr(values, [moment.rise for moment in moments]).statistic)
        assert other.low <= other.rho <= other.high and other.high - other.low > 0.1
    assert {other.measure for other in others} == {
        "harmful prompts, all blocks", "weights, all blocks", "weights, safety layers"
    }  # fmt: skip


def test_few_runs_have_no_interval_and_no_gap_no_safety_layers() -> None:
    table = drift_table([drifting_run(0, gap=False), drifting_run(1)])
    assert [row[0] for row in table.rows] and all("safety" not in str(row[0]) for row in table.rows)
    assert "–" in table.text()
    assert safety_layers_of(drifting_run(0, gap=False)) is None


def test_runs_without_drift_are_named() -> None:
    bare = RunResults([event.record() for event in drifting_run(3).events(RunEvent)], Path("bare/results.jsonl"))
    assert not has_drift(bare)
    assert plot_drift(bare) is None
    with pytest.raises(ValueError, match=r"bare/results.jsonl holds no drift; run it with the callback LayerDrift"):
        moments_of([bare])


def test_page_and_picture() -> None:
    runs = [drifting_run(seed) for seed in range(3)]
    assert "Rank correlation of drift with the rise of attack success, over all steps of 3 runs" in render_page(
        runs, {}
    )
    assert "Rank correlation" not in render_page(runs[:2], {})
    figure = plot_drift(runs[0])
    assert figure is not None and [ax.get_title(loc="left") for ax in figure.axes] == [
        "Hidden states on harmful prompts", "Weights"
    ]  # fmt: skip
    assert len(figure.axes[0].get_lines()) == 3
