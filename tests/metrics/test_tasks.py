"""Exact match, token F1 and the registry."""

import math
from fractions import Fraction

import pytest
import torch

from hpa_lightning.metrics import METRICS, ExactMatch, TokenF1, build_metric, exact_match, token_f1


@pytest.mark.parametrize(
    ("prediction", "references", "correct"),
    [
        ("red", ("red",), True),
        ("  Red . ", ("red",), True),
        ("RED!", ("blue", "red"), True),
        ("two  cubes", ("two cubes.",), True),
        ("", ("red",), False),
        ("", ("",), False),
        (".", (".",), False),
        ("re", ("red",), False),
        ("red cube", ("red",), False),
        ("-5", ("5",), False),
        ("3.5", ("35",), False),
    ],
)
def test_exact_match(prediction: str, references: tuple[str, ...], correct: bool) -> None:
    assert float(exact_match([prediction], [references])) == float(correct)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("a dog", ("a dog",), Fraction(1)),
        ("a dog , running .", ("A dog, running",), Fraction(1)),
        ("dog dog", ("dog",), Fraction(2, 3)),  # precision 1/2, recall 1: the repetition counts against it
        ("a red cube", ("a blue cube", "sphere"), Fraction(2, 3)),
        ("cat", ("dog",), Fraction(0)),
        ("", ("dog",), Fraction(0)),
        ("", ("",), Fraction(0)),
        (". ,", (". ,",), Fraction(0)),
    ],
)
def test_token_f1(prediction: str, references: tuple[str, ...], expected: Fraction) -> None:
    assert float(token_f1([prediction], [references])) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_updated_the_same_way(name: str) -> None:
    metric = build_metric(name)
    metric.update(["red", "i cannot help with that ."], [("red",), ("blue",)])
    metric.update(["red", "red"], [("red",), ("blue",)])
    expected = {"exact_match": 2 / 4, "token_f1": 2 / 4, "attack_success_rate": 3 / 4, "over_refusal_rate": 1 / 4}
    assert float(metric.compute()) == pytest.approx(expected[name])
    assert metric.is_differentiable is False and metric.full_state_update is False


@pytest.mark.parametrize("metric_class", [ExactMatch, TokenF1])
def test_class_over_batches_equals_function_over_all(metric_class) -> None:
    predictions = ["a red cube", "blue", "", "green sphere"]
    references = [("a cube",), ("blue", "red"), ("x",), ("green",)]
    metric = metric_class()
    step_values = [metric(predictions[:1], references[:1]), metric(predictions[1:], references[1:])]
    function = {ExactMatch: exact_match, TokenF1: token_f1}[metric_class]
    torch.testing.assert_close(metric.compute(), function(predictions, references))
    torch.testing.assert_close(step_values[0], function(predictions[:1], references[:1]))
    assert metric.plot()[1].lines


def test_nothing_seen_is_nan_and_warns() -> None:
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(exact_match([], []))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        exact_match(["a", "b"], [("a",)])
    with pytest.raises(ValueError, match="prediction 1 must be"):
        token_f1(["a", "b"], [("a",), ()])
    with pytest.raises(ValueError, match="prediction 0 must be"):
        exact_match(["a"], ["a"])
    with pytest.raises(ValueError, match="exact_match, token_f1, attack_success_rate, over_refusal_rate"):
        build_metric("accuracy")
