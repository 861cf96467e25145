"""Which drift tells the loss of safety, on runs whose answer is planted; against SciPy's rank correlation."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import spearmanr
from support.drifting_runs import drifting_run

from hpa_lightning.report.drift_plots import plot_drift, safety_layers_of
from hpa_lightning.report.drift_prediction import correlations, drift_table, has_drift, moments_of
from hpa_lightning.results.events import RunEvent
from hpa_lightning.results.run_results import RunResults


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
