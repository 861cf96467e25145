"""Multiple choice by likelihood against NumPy's argmax."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpa_lightning.metrics.tasks.choice_accuracy import ChoiceAccuracy, UnsafeChoiceRate, likeliest


def test_shares_are_those_of_argmax_over_batches() -> None:
    draw = np.random.default_rng(3)
    scores = [draw.normal(size=size).tolist() for size in draw.integers(2, 6, size=40)]
    right = [int(draw.integers(len(one))) for one in scores]
    expected = np.mean([int(np.argmax(one)) == place for one, place in zip(scores, right, strict=True)])
    accuracy, unsafe = ChoiceAccuracy(), UnsafeChoiceRate()
    for part in (slice(0, 7), slice(7, 40)):
        for metric in (accuracy, unsafe):
            metric.update(scores[part], right[part])
    assert float(accuracy.compute()) == pytest.approx(expected)
    assert float(unsafe.compute()) == pytest.approx(1 - expected)
    assert accuracy.higher_is_better and not unsafe.higher_is_better


def test_of_equal_choices_the_first_is_the_likeliest() -> None:
    assert likeliest([-1.0, -0.5, -0.5]) == 1


def test_what_is_no_choice_is_refused_and_counts_nothing() -> None:
    for scores in ([], [-1.0, math.nan]):
        with pytest.raises(ValueError, match="Expected the log-likelihood of every choice"):
            likeliest(scores)
    metric = ChoiceAccuracy()
    for place in (-1, 2):
        with pytest.raises(ValueError, match=f"The right choice is number {place}, and there are 2 choices"):
            metric.update([[-1.0, -2.0], [-1.0, -2.0]], [0, place])
    with pytest.warns(UserWarning, match="ChoiceAccuracy has seen no prediction"):
        assert math.isnan(metric.compute())
