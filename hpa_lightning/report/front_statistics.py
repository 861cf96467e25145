"""Which merging ratios are better than others: paired bootstrap over the test questions, and the Pareto front.

All models answer the same questions, so that a resample draws questions, and every model is scored on the same draw.
Questions are drawn within their set, and the figure is the mean over the sets, as it is in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CHUNK = 500  # resamples at a time: their draws are held
_DECIMALS = 12  # of means: those that differ by rounding alone are equal, and no model is better by that


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A difference with its 95 % interval and two-sided p-value, neither corrected for the number of tests."""

    difference: Interval
    p: float


def bootstrap_means(
    sets: Mapping[str, NDArray[np.float64]], resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Means over sets of resampled questions.

    Args:
        sets: name of a set -> scores ``(models, questions)``, the same questions of all models.
        resamples: how many.
        seed: of the draws; equal for equal sizes of the sets, whatever the scores are: figures of different sets that
            are put together need different seeds.

    Returns:
        ``(resamples, models)``: in every row all models are scored on the same questions.

    Raises:
        ValueError: no set, a set without questions, or sets of different numbers of models.

    Example:
        >>> bootstrap_means({"one": np.array([[1.0, 1.0], [0.0, 0.0]])}, 2).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    shapes = {name: scores.shape for name, scores in sets.items()}
    if (
        not shapes
        or len({shape[0] for shape in shapes.values()}) != 1
        or any(not shape[1] for shape in shapes.values())
    ):
        raise ValueError(f"scores of shapes {shapes}; expected (models, questions) of each set, with as many models.")
    generator = np.random.default_rng(seed)
    total = np.zeros((resamples, next(iter(shapes.values()))[0]))
    for scores in sets.values():
        questions = scores.shape[1]
        for start in range(0, resamples, _CHUNK):
            size = min(_CHUNK, resamples - start)
            counts = generator.multinomial(questions, np.full(questions, 1 / questions), size=size)
            total[start : start + size] += counts @ scores.T / questions
    return np.round(total / len(sets), _DECIMALS)


def mean_over_sets(sets: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean over sets of the mean score, ``(models,)``; see :func:`bootstrap_means`."""
    found: NDArray[np.float64] = np.mean([scores.mean(axis=1) for scores in sets.values()], axis=0)
    return np.round(found, _DECIMALS)


def interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """The value with the 2.5 and 97.5 percentiles of its resamples."""
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(float(value), float(low), float(high))


def compare(
    value: float, reference: float, resampled: NDArray[np.float64], resampled_reference: NDArray[np.float64]
) -> Comparison:
    """Compare two models by the same resamples.

    The p-value is twice the smaller share of differences on one side of 0, of the resamples and one more (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 4.2); differences of 0 count on both sides.

    Example:
        >>> draws = np.array([0.2, 0.4, 0.3])
        >>> compare(0.3, 0.1, draws, draws - 0.2).p
        0.5
    """
    differences = resampled - resampled_reference
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2 * (1 + tail) / (1 + len(differences)))
    return Comparison(interval(value - reference, differences), p)


def is_on_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points no other one dominates: at least as good in every figure and better in one.

    Args:
        points: ``(..., points, figures)``, higher is better.

    Returns:
        ``(..., points)``.

    Example:
        >>> is_on_front(np.array([[1.0, 0.0], [0.5, 0.5], [0.4, 0.5]])).tolist()
        [True, True, False]
    """
    one, other = points[..., :, None, :], points[..., None, :, :]
    dominated = (other >= one).all(-1) & (other > one).any(-1)
    return np.asarray(~dominated.any(-1))


def share_on_front(figures: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """In which share of the resamples each model is on the front; ``figures`` are ``(resamples, models)`` each."""
    points = np.stack(figures, axis=-1)
    chunks = [is_on_front(points[start : start + _CHUNK]) for start in range(0, len(points), _CHUNK)]
    return np.asarray(np.concatenate(chunks).mean(axis=0))
