"""The curve inside tasks: which point counts, and what is drawn of one run and of several methods."""

from __future__ import annotations

from typing import Any

import pytest

from hpa_lightning.report.safety_curve_plot import curve_of, plot_safety_curve
from hpa_lightning.results.run_results import RunResults

KINDS = {"a": "task", "harm": "safety", "mild": "safety"}


def run(points: list[tuple[str, int, str, float | None]], seed: int = 0) -> RunResults:
    sets = [{"name": name, "kind": kind} for name, kind in KINDS.items()]
    lines: list[dict[str, Any]] = [{"event": "run", "method": "x", "seed": seed, "tasks": ["a"], "sets": sets}]
    for name, step, moment, score in points:
        line = {"event": "curve", "step": 0, "task": "a", "optimizer_step": step, "moment": moment, "set": name}
        lines.append({**line, "kind": KINDS[name], "metric": "m", "score": score, "n": 4})
    return RunResults(lines)


def test_the_task_s_end_comes_after_its_last_step_and_a_point_without_a_score_is_none() -> None:
    found = curve_of(run([("harm", 3, "step", 0.8), ("harm", 3, "end", 0.2), ("harm", 1, "step", None)]))
    assert found == {("safety", "harm"): {3: 0.2}}
    assert plot_safety_curve({"x": [run([])]}) is None


def test_of_one_method_every_set_has_a_line_and_of_several_each_method_its_mean() -> None:
    points = [("harm", 0, "start", 0.1), ("harm", 4, "end", 0.5), ("mild", 0, "start", 0.3), ("mild", 4, "end", 0.7)]
    one = plot_safety_curve({"x": [run(points)]})
    assert one is not None and len(one.axes) == 1
    lines = {line.get_label(): list(line.get_ydata()) for line in one.axes[0].get_lines()}
    assert lines == {"harm": pytest.approx([10.0, 50.0]), "mild": pytest.approx([30.0, 70.0])}
    both = plot_safety_curve({"x": [run(points), run(points, 1)], "y": [run(points[:2])]})
    assert both is not None
    means = {line.get_label(): list(line.get_ydata()) for line in both.axes[0].get_lines()}
    assert means == {"x": pytest.approx([20.0, 60.0]), "y": pytest.approx([10.0, 50.0])}
