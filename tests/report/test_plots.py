"""Plots show the numbers of the result file; read back from the drawn artists."""

import numpy as np
import pytest

from hpa_lightning.report import plot_comparison, plot_curves, plot_matrix, plot_retention, plot_trade_off
from hpa_lightning.report.significance import estimate
from hpa_lightning.results.result_file import read_results
from hpa_lightning.results.run_results import RunResults


def labels(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def line(ax, label: str) -> np.ndarray:
    (found,) = (item for item in ax.lines if item.get_label() == label)
    return np.asarray(found.get_ydata(), dtype=float)


def test_matrix_shows_every_score(write_run) -> None:
    run = RunResults.from_file(write_run("one"))
    ax = plot_matrix(run).axes[0]
    values = 100 * np.vstack([list(run.initial().values()), run.matrix()])
    assert [text.get_text() for text in ax.texts] == [f"{value:.1f}" for value in values.ravel()]
    assert [tick.get_text() for tick in ax.get_yticklabels()][:2] == ["aligned", "after AD"]
    assert len(ax.patches) == len(run.tasks)  # the frames on the diagonal


def test_matrix_of_an_unfinished_run_has_dashes(write_run) -> None:
    records = [record for record in read_results(write_run("one")) if record.get("step", -1) < 3]
    run = RunResults(records)
    texts = [text.get_text() for text in plot_matrix(run).axes[0].texts]
    assert texts.count("–") == 3 * 6
    plot_curves(run)
    plot_trade_off([run])


def test_curves_follow_the_steps(write_run) -> None:
    run = RunResults.from_file(write_run("one"))
    upper, lower = plot_curves(run).axes
    assert labels(upper) == [*run.tasks, "AP"]
    np.testing.assert_allclose(line(upper, "Fin"), 100 * run.matrix()[3:, 3])
    np.testing.assert_allclose(line(upper, "AP"), [100 * run.summary(step)["AP"] for step in range(6)])
    np.testing.assert_allclose(line(lower, "MASR"), [100 * run.summary(step)["MASR"] for step in range(-1, 6)])
    np.testing.assert_allclose(
        line(lower, "over-refusal xstest"), [100 * run.over_refusal(step)["xstest"] for step in range(-1, 6)]
    )
    assert [tick.get_text() for tick in lower.get_xticklabels()] == ["aligned", *run.tasks]
    assert "%" in upper.get_ylabel() and "%" in lower.get_ylabel()


def test_cider_above_100_percent_is_seen(write_run) -> None:
    records = [
        {**record, "score": 1.3, "metric": "cider"} if record.get("set") == "Flickr30k" else record
        for record in read_results(write_run("one"))
    ]
    run = RunResults(records)
    upper, lower = plot_curves(run).axes
    assert max(line(upper, "Flickr30k")) == pytest.approx(130.0) and upper.get_ylim()[1] > 130
    assert lower.get_ylim()[1] < 110
    assert "130.0" in [text.get_text() for text in plot_matrix(run).axes[0].texts]
    assert plot_curves(RunResults.from_file(write_run("two"))).axes[0].get_ylim()[1] == pytest.approx(103.0)


def test_retention_stacks_to_the_recorded_columns(write_run) -> None:
    run = RunResults.from_file(write_run("one", layers=3))
    left, right = plot_retention(run).axes
    for layer in (1, 2, 3):
        events = [event for event in run.events("retention") if event["layer"] == layer]
        kept = sum(bars.patches[layer - 1].get_height() for bars in left.containers[:2])
        assert kept == pytest.approx(100 * sum(e["retained"] for e in events) / sum(e["columns"] for e in events))
        whole = sum(bars.patches[layer - 1].get_height() for bars in left.containers)
        assert whole == pytest.approx(
            100 * sum(e["safety_focused"] for e in events) / sum(e["columns"] for e in events)
        )
    assert [tick.get_text() for tick in right.get_yticklabels()] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]


def test_no_retention_no_plot() -> None:
    run = {"event": "run", "method": "SeqFT", "tasks": ["a"], "sets": [{"name": "a", "kind": "task"}]}
    score = {"event": "score", "step": 0, "set": "a", "kind": "task", "metric": "exact_match", "score": 0.5}
    results = RunResults([run, score])
    assert plot_retention(results) is None
    assert plot_trade_off([results]) is None  # nothing to trade off without safety sets
    assert labels(plot_curves(results).axes[0]) == ["a", "AP"]


def test_comparison_and_trade_off_show_means(write_run) -> None:
    runs = [
        RunResults.from_file(write_run(f"{method}{seed}", method, seed, harm=harm))
        for method, harm in (("HPA", 0.01), ("SeqFT", 0.09))
        for seed in range(2)
    ]
    upper, lower = plot_comparison(runs).axes
    assert labels(upper) == ["HPA", "SeqFT"]
    expected = [np.mean([100 * run.summary(step)["MASR"] for run in runs[2:]]) for step in range(-1, 6)]
    np.testing.assert_allclose(line(lower, "SeqFT"), expected)
    ax = plot_trade_off(runs).axes[0]
    assert set(labels(ax)) == {"HPA", "SeqFT", "MASR of the aligned model"}
    points = {bar.get_label(): bar.lines[0].get_xydata()[0] for bar in ax.containers}
    for method, group in (("HPA", runs[:2]), ("SeqFT", runs[2:])):
        summaries = [run.summary() for run in group]
        assert points[method] == pytest.approx([estimate([100 * s[k] for s in summaries]).mean for k in ("MASR", "AP")])
