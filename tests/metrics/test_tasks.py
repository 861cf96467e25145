"""What all metrics of tasks have in common, and the registry."""

import math
import pickle
import time

import pytest
import torch

from hpa_lightning import metrics
from hpa_lightning.metrics import METRICS, build_metric, exact_match, token_f1
from hpa_lightning.metrics.tasks.grouped import GroupedMetric


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_updated_the_same_way(name: str) -> None:
    box = "[0, 0, 1, 1]"
    right, wrong, references = {
        "relaxed_match": ("1,010", "900", ("1000",)),
        "vqa_accuracy": ("Red.", "blue", ("red",) * 9 + ("blue",)),
        "option_accuracy": ("The answer is B.", "A", ("B",)),
        "cider": ("Some red cubes lie.", "blue", ("some red cubes lie",)),
        "grounding_accuracy": (box, "[0, 0, 0.5, 1]", (box,)),
        "circular_accuracy": ("B", "A", ("B",)),
        "mme_score": ("Yes.", "no", ("Yes",)),
    }.get(name, ("red", "i cannot help with that .", ("red",)))
    metric = build_metric(name)
    grouped = isinstance(metric, GroupedMetric)
    metric.update([right, wrong], [references, references], *([["1", "2"]] if grouped else []))
    metric.update(
        [wrong, wrong],
        [references, ("a text that is not the prediction",) * 4 if name == "cider" else references],
        *([["3", "4"]] if grouped else []),
    )
    expected = {
        "attack_success_rate": 1 / 4,
        "over_refusal_rate": 3 / 4,
        "vqa_accuracy": (1 + 3 * 0.3) / 4,
        "cider": 10 / 4,
    }.get(name, 1 / 4)
    assert float(metric.compute()) == pytest.approx(expected)
    assert metric.is_differentiable is False and metric.full_state_update is False


TASK_METRICS = {
    "exact_match": (metrics.ExactMatch, metrics.exact_match),
    "contained_match": (metrics.ContainedMatch, metrics.contained_match),
    "token_f1": (metrics.TokenF1, metrics.token_f1),
    "relaxed_match": (metrics.RelaxedMatch, metrics.relaxed_match),
    "vqa_accuracy": (metrics.VQAAccuracy, metrics.vqa_accuracy),
    "option_accuracy": (metrics.OptionAccuracy, metrics.option_accuracy),
    "cider": (metrics.CIDEr, metrics.cider),
    "grounding_accuracy": (metrics.GroundingAccuracy, metrics.grounding_accuracy),
}

BOXES = ["[0, 0, 1, 1]", "[0.5, 0.5, 1, 1]", "", "[0, 0, 0.9, 0.9]"]

PREDICTIONS = {"grounding_accuracy": BOXES, "option_accuracy": ["B", "(C)", "", "A or B"]}

REFERENCES = {
    "grounding_accuracy": [(BOXES[0],)] * 4,
    "vqa_accuracy": [("a red cube",) * 5 + ("blue",) * 2, ("blue",) * 4, ("x",) * 10, ("green",) * 4],
    "option_accuracy": [("B",), ("C", "a cat"), ("B",), ("A",)],
}


def samples(name: str) -> tuple[list[str], list[tuple[str, ...]]]:
    predictions = PREDICTIONS.get(name, ["a red cube", "blue", "", "green sphere"])
    return predictions, REFERENCES.get(name, [("a red cube", "cube"), ("blue", "red"), ("x",), ("green",)])


def test_every_metric_for_tasks_is_tested_here() -> None:
    grouped = {name for name, kind in METRICS.items() if issubclass(kind, GroupedMetric)}  # tests/metrics/tasks
    assert set(TASK_METRICS) == set(METRICS) - {"attack_success_rate", "over_refusal_rate"} - grouped
    assert all(METRICS[name] is metric_class for name, (metric_class, _) in TASK_METRICS.items())


@pytest.mark.parametrize("name", TASK_METRICS)
def test_class_over_batches_equals_function_over_all(name: str) -> None:
    metric_class, function = TASK_METRICS[name]
    predictions, references = samples(name)
    metric = metric_class()
    step_values = [metric(predictions[:2], references[:2]), metric(predictions[2:], references[2:])]
    torch.testing.assert_close(metric.compute(), function(predictions, references))
    torch.testing.assert_close(step_values[0], function(predictions[:2], references[:2]))
    assert 0 < float(metric.compute()) < (10 if name == "cider" else 1)
    assert metric.plot()[1].lines


@pytest.mark.parametrize("name", TASK_METRICS)
def test_reset_and_pickling(name: str) -> None:
    metric_class, function = TASK_METRICS[name]
    predictions, references = samples(name)
    metric = metric_class()
    metric.update(predictions[:2], references[:2])
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(predictions[2:], references[2:])
    expected = function(predictions, references)
    torch.testing.assert_close(metric.compute(), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(metric)).compute(), expected)
    metric.reset()
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(metric.compute())
    metric.update(predictions, references)
    torch.testing.assert_close(metric.compute(), expected)


@pytest.mark.parametrize("name", TASK_METRICS)
def test_an_empty_prediction_is_never_correct(name: str) -> None:
    metric_class, function = TASK_METRICS[name]
    _, references = samples(name)
    if name != "grounding_accuracy":  # which refuses references without a box
        references = [*references, ("",) * 4, (" ", "", ".", "the")]
    for empty in ("", " ", "\n"):
        assert float(function([empty] * len(references), references)) == 0.0
        metric = metric_class()
        metric.update([empty] * len(references), references)
        assert float(metric.compute()) == 0.0


@pytest.mark.parametrize("name", TASK_METRICS)
def test_nothing_seen_is_nan_and_warns(name: str) -> None:
    metric_class, function = TASK_METRICS[name]
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(function([], []))
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(metric_class().compute())


@pytest.mark.parametrize("name", TASK_METRICS)
def test_sequences_of_unequal_length_and_single_strings_are_refused(name: str) -> None:
    metric_class, function = TASK_METRICS[name]
    for score in (function, metric_class().update):
        with pytest.raises(ValueError, match="2 predictions and 1 references"):
            score(["a", "b"], [("a",)])
        with pytest.raises(ValueError, match="single string"):
            score("a", [("a",)])
        with pytest.raises(ValueError, match="prediction 0 must be"):
            score(["a"], ["a"])
        with pytest.raises(ValueError, match="prediction 0 must be"):
            score(["a"], [()])


@pytest.mark.parametrize("name", ["exact_match", "attack_success_rate"])
def test_results_that_are_known_already_are_taken(name: str) -> None:
    """And the value is computed anew after them."""
    metric, known = build_metric(name), {"exact_match": "scores", "attack_success_rate": "verdicts"}[name]
    metric.update(["a", "b"], [("a",), ("a",)], **{known: [True, True]})
    assert float(metric.compute()) == (1.0 if name == "exact_match" else 0.0)
    metric.update(["a", "b"], [("a",), ("a",)], **{known: [False, False]})
    assert float(metric.compute()) == 0.5
    with pytest.raises(ValueError, match=f"1 {known}"):
        metric.update(["a", "b"], [("a",), ("a",)], **{known: [True]})


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        exact_match(["a", "b"], [("a",)])
    with pytest.raises(ValueError, match="prediction 1 must be"):
        token_f1(["a", "b"], [("a",), ()])
    with pytest.raises(ValueError, match="prediction 0 must be"):
        exact_match(["a"], ["a"])
    with pytest.raises(
        ValueError,
        match=r"exact_match, contained_match, token_f1, .*grounding_accuracy, attack_success_rate, over_refusal_rate",
    ):
        build_metric("accuracy")


LONG = 20_000

ODD = {
    "letters": "b" * LONG,
    "spaces": "b" + " " * LONG + "b",
    "newlines": "B" + "\n" * LONG + "B",
    "brackets": "[" * LONG,
    "open boxes": "[1, 2, " * (LONG // 7),
    "half boxes": "[1" + " " * LONG + "x",
    "pairs": "(1, 2), " * (LONG // 8),
    "digits": "1" * LONG,
    "thousands": "1" + ",000" * (LONG // 4) + "x",
    "numbers": "1 " * (LONG // 2),
    "options": "A. a " * (LONG // 5),
    "list": "A, " * (LONG // 3),
    "answers": "the answer is " * (LONG // 14),
    "lead-in": "the correct right best final " * (LONG // 29),
    "apostrophes": "n't've'" * (LONG // 7),
    "marks": "?!.,-' " * (LONG // 7),
}


@pytest.mark.parametrize("name", [name for name in METRICS if not name.endswith("_rate")])
@pytest.mark.parametrize("kind", ODD)
def test_long_and_odd_texts_are_scored_at_once(name: str, kind: str) -> None:
    reference = {"grounding_accuracy": "[0, 0, 1, 1]", "mme_score": "yes"}.get(name, "b")
    metric = build_metric(name)
    groups = [["1", "2"]] if isinstance(metric, GroupedMetric) else []
    start = time.perf_counter()
    metric.update([ODD[kind], ""], [(reference,) * 4] * 2, *groups)
    assert 0.0 <= float(metric.compute()) <= 0.5
    assert time.perf_counter() - start < 5, "a regular expression backtracks"
