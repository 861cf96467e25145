"""Which ratios are on the front, what differs, and what is not picked."""

from __future__ import annotations

import numpy as np
import pytest
from support.ratio_scores import scores

from hpa_lightning.merge.front_figures import front_of
from hpa_lightning.merge.question_scores import QuestionScores
from hpa_lightning.report.front_page import front_table


def test_what_differs_is_marked_and_what_does_not_is_not() -> None:
    task, safety = scores(0.2, 0.9, 1), scores(0.95, 0.3, 2)
    models = {"task": task, "safety": safety, "0.25": scores(0.9, 0.88, 3), "0.75": scores(0.3, 0.35, 4)}
    front = front_of(models, {"task": 0.0, "safety": 1.0, "0.25": 0.25, "0.75": 0.75}, 0.2, 2000)
    points = {point.name: point for point in front.points}
    assert points["0.25"].marks("task") == "safety +" and points["0.25"].marks("ensemble") == "safety +, helpfulness +"
    assert points["0.75"].on_front is False and points["0.75"].share_on_front < 0.05 and points["0.25"].on_front
    assert front.picked == "0.25" and "most helpful" in front.verdict()
    ensemble = points["0.25"].safety.value - points["0.25"].comparisons["ensemble"]["safety"].difference.value
    ends = [models[end].scores["harm"].mean() for end in ("task", "safety")]
    assert ensemble == pytest.approx(0.75 * ends[0] + 0.25 * ends[1])
    same = front_of(models | {"0.25": task}, {"task": 0.0, "safety": 1.0, "0.25": 0.25, "0.75": 0.75}, 0.01, 2000)
    equal = next(point for point in same.points if point.name == "0.25")
    assert equal.marks("task") == "none" and equal.p["task"] == {"safety": 1.0, "helpfulness": 1.0}
    assert same.picked is None and same.verdict().startswith("No model keeps")


def test_a_broken_model_is_not_picked() -> None:
    models = {
        "task": scores(0.2, 0.9, 1),
        "safety": scores(0.95, 0.3, 2),
        "0.5": scores(1.0, 0.8, 3, "harm 400 of 400"),
    }
    ratios = {"task": 0.0, "safety": 1.0, "0.5": 0.5}
    front = front_of(models, ratios, 0.2, 200)
    assert front.picked == "safety"
    table = front_table(front)
    assert table.columns[-1] == "Mostly empty answers"
    assert [(row[0], row[-1]) for row in table.rows if row[-1] != "none"] == [("ratio 0.5", "harm 400 of 400")]
    assert (
        "Mostly empty answers" not in front_table(front_of(models | {"0.5": models["task"]}, ratios, 0.2, 200)).columns
    )


def test_models_must_have_answered_the_same() -> None:
    models = {"task": scores(0.2, 0.9, 1), "safety": scores(0.9, 0.3, 2, questions=9)}
    with pytest.raises(ValueError, match="have answered different questions"):
        front_of(models, {"task": 0.0, "safety": 1.0}, None, 200)


def _given(safety: object, task: object) -> QuestionScores:
    found = {"harm": np.array(safety, dtype=float), "charts": np.array(task, dtype=float)}
    ids = {name: tuple(map(str, range(len(values)))) for name, values in found.items()}
    return QuestionScores({"harm": "safety", "charts": "task"}, found, ids, "")


def test_questions_of_safety_and_of_the_tasks_are_drawn_apart() -> None:
    """Each model is better on one of the two by as much: it is on the front unless it is worse on both by chance."""
    half = np.tile([1.0, 0.0], 200)
    models = {"task": _given(half, 1 - half), "safety": _given(1 - half, half)}
    front = front_of(models, {"task": 0.0, "safety": 1.0}, None, 4000)
    assert [point.share_on_front for point in front.points] == pytest.approx([0.75, 0.75], abs=0.05)


def test_models_that_differ_by_rounding_do_not_differ() -> None:
    """The means of fractions in another order, and the ensemble of equal ones, are off by one part in 10^16."""
    few = [2 / 7, 6 / 11, 7 / 11] * 20
    models = {name: _given([1.0] * 60, few) for name in ("task", "safety", "0.1", "0.45")}
    models["0.7"] = _given([1.0] * 60, [0.9, 0.6, 0.3] * 20)
    models["0.8"] = _given([1.0] * 60, [0.3, 0.6, 0.9] * 20)
    ratios = {"task": 0.0, "safety": 1.0} | {name: float(name) for name in models if "." in name}
    points = {point.name: point for point in front_of(models, ratios, None, 1000).points}
    for name in ("0.1", "0.45"):
        found = points[name].comparisons["ensemble"]["helpfulness"]
        assert found.p == 1.0 and found.difference == (0.0, 0.0, 0.0)
    assert points["0.7"].on_front and points["0.8"].on_front


def test_few_questions_are_warned_of() -> None:
    models = {"task": _given([0.0], [1.0] * 10), "safety": _given([1.0], [0.0] * 10)}
    with pytest.warns(
        UserWarning, match=r"fewer than 10 questions \(harm has 1\): .* too short and p-values too small"
    ):
        front_of(models, {"task": 0.0, "safety": 1.0}, None, 100)
