"""Plots of a study, read back from the drawn artists."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from support.study_cells import T2, results, two_tasks

from hpa_lightning.report.study_plots import plot_against_performance, plot_sweep
from hpa_lightning.report.study_report import StudyCell


def test_trade_off_has_one_labelled_point_for_each_method(study: list[StudyCell]) -> None:
    groups = {name: [c.run for c in study if c.method == name] for name in ("ref", "ewc", "hpa", "odd")}
    ax = plot_against_performance(groups, "MASR").axes[0]
    points = {bar.get_label(): bar.lines[0].get_xydata()[0] for bar in ax.containers}
    assert points["ref"] == pytest.approx([75.0, 60.0]) and points["odd"] == pytest.approx([0.0, 20.0])
    (reference,) = (bar for bar in ax.containers if bar.get_label() == "ref")
    horizontal = next(np.ptp(line.get_segments()[0], axis=0) for line in reference.lines[2])
    assert horizontal == pytest.approx([2 * T2 * 5 / math.sqrt(3), 0.0])
    assert [text.get_text() for text in ax.texts if text.get_text() in groups] != []
    assert {text.get_text() for text in ax.texts} == {
        "ref",
        "ewc",
        "hpa (n = 2)",
        "odd (n = 1)",
        "MASR of the aligned model",
    }
    hollow = {bar.get_label(): bar.lines[0].get_markerfacecolor() == "white" for bar in ax.containers}
    assert hollow == {"ref": False, "ewc": False, "hpa": True, "odd": True}
    assert all(not bar.lines[2] for bar in ax.containers if hollow[bar.get_label()]), "an interval of two seeds"
    assert plot_against_performance({"a": [results([[0.5]], [math.nan, math.nan])]}, "MASR") is None


def test_labels_of_twenty_methods_stay_apart_and_inside() -> None:
    rng = np.random.default_rng(0)
    groups = {
        f"Method number {n}": [two_tasks(0.9, 0.9, 0.4 + rng.uniform(0, 0.3), rng.uniform(0.3, 0.8)) for _ in range(3)]
        for n in range(20)
    }
    figure = plot_against_performance(groups, "MASR")
    (ax,) = figure.axes
    renderer = figure.canvas.get_renderer()
    names = [text for text in ax.texts if text.get_text() in groups]
    assert all(text.get_path_effects() for text in names), "a rim, since intervals go through them"
    boxes = [text.get_window_extent(renderer) for text in names]
    inside = ax.get_window_extent()
    assert len(boxes) == 20
    assert not [pair for pair in combinations(boxes, 2) if pair[0].padded(-1).overlaps(pair[1].padded(-1))]
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_families_share_a_line_and_a_name() -> None:
    groups = {f"A, {n}": [two_tasks(0.9, 0.9, 0.1 * n, 0.1 * n)] for n in (1, 2, 5)}
    groups["B"] = [two_tasks(0.9, 0.9, 0.9, 0.1)]
    figure = plot_against_performance(groups, "MASR", families={**dict.fromkeys(list(groups)[:3], "A"), "B": "B"})
    (ax,) = figure.axes
    assert sorted(text.get_text() for text in ax.texts) == ["A", "B", "MASR of the aligned model"]
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(line.get_xydata(), [[10.0, 50.0], [20.0, 55.0], [50.0, 70.0]])
    colours = [bar.lines[0].get_color() for bar in ax.containers]
    assert len(set(colours[:3])) == 1 and colours[3] != colours[0]


def test_sweep_draws_every_setting_and_lines_for_the_rest() -> None:
    runs = {value: [two_tasks(0.9, 0.9, 0.5 - value / 100, 0.5 - value / 50)] for value in (20.0, 5.0, 10.0)}
    upper, lower, _ = plot_sweep({"HPA": runs}, "retained, %", {"none": [two_tasks(0.9, 0.9, 0.3, 0.9)]}).axes
    (points,) = (bar.lines[0].get_xydata() for bar in lower.containers)
    np.testing.assert_allclose(points, [[5.0, 40.0], [10.0, 30.0], [20.0, 10.0]])
    assert upper.get_legend_handles_labels()[1] == ["none", "HPA"]
    assert upper.lines[-1].get_ydata()[0] == pytest.approx(60.0)
