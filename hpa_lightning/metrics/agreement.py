"""How far raters agree, and intervals of it: Krippendorff's alpha, Fleiss' kappa, bootstrap over units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["nominal", "ordinal"]
_LEVELS = ("nominal", "ordinal")


def krippendorff_alpha(ratings: NDArray[np.float64], level: Level = "ordinal") -> float:
    """Krippendorff's alpha: one minus the observed over the expected disagreement.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011. The ordinal distance of two values is the
    squared number of ratings from the one to the other, the ends counted by half.

    Args:
        ratings: ``(raters, units)``, NaN where a rater has not rated a unit; units with one rating count for nothing.
        level: ``"ordinal"`` or ``"nominal"``.

    Returns:
        1 for full agreement, 0 for that of chance; NaN where it is not defined: no unit has two ratings, or all ratings
        are one value.

    Raises:
        ValueError: an unknown level, or ratings of another shape.

    >>> round(krippendorff_alpha(np.array([[1, 2, 3, 3.0], [1, 2, 3, 2.0]])), 3)
    0.79
    """
    if level not in _LEVELS or ratings.ndim != 2:
        raise ValueError(
            f"level is {level!r} and the ratings have shape {ratings.shape}; expected {_LEVELS}, (raters, units)."
        )
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = np.stack([(ratings == value).sum(0) for value in values], 1).astype(np.float64) if len(values) else None
    if counts is None:
        return math.nan
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return math.nan
    totals = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - np.einsum("uv,vw->uvw", counts, np.eye(len(values)))
    observed = (pairs / (totals - 1)[:, None, None]).sum(0)
    of_value = observed.sum(0)
    expected = (np.outer(of_value, of_value) - np.diag(of_value)) / (of_value.sum() - 1)
    distance = _distances(of_value, level)
    if (chance := float((expected * distance).sum())) == 0:
        return math.nan
    return 1 - float((observed * distance).sum()) / chance


def _distances(of_value: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Squared distances of the values, ``(values, values)``."""
    if level == "nominal":
        return 1 - np.eye(len(of_value))
    middle = np.cumsum(of_value) - of_value / 2
    return (middle[:, None] - middle[None, :]) ** 2


def fleiss_kappa(ratings: NDArray[np.float64]) -> float:
    """Fleiss' kappa of nominal ratings, where every rater has rated every unit.

    Source: Fleiss, "Measuring nominal scale agreement among many raters", 1971.

    Args:
        ratings: ``(raters, units)``.

    Returns:
        NaN where it is not defined: a missing rating, one rater, or one value alone.

    >>> round(fleiss_kappa(np.array([[0, 1, 1, 0.0], [0, 1, 0, 0.0]])), 3)
    0.467
    """
    raters = len(ratings)
    if raters < 2 or not ratings.size or np.isnan(ratings).any():
        return math.nan
    counts = np.stack([(ratings == value).sum(0) for value in np.unique(ratings)], 1).astype(np.float64)
    observed = ((counts**2).sum(1) - raters).mean() / (raters * (raters - 1))
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return math.nan if chance == 1 else float((observed - chance) / (1 - chance))


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], units: int, seed: int, draws: int = 1000
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic over units that are drawn with replacement.

    Args:
        statistic: places of the drawn units -> value; draws without a value (NaN) are left out.
        units: how many there are.
        seed: of the draws.
        draws: how many.

    Returns:
        Lower and upper end; NaN of fewer than two units, of which every draw is the same, and where fewer than half of
        the draws have a value.
    """
    generator = np.random.default_rng(seed)
    found = [statistic(generator.integers(0, units, units)) for _ in range(draws)] if units > 1 else []
    values = np.array([value for value in found if not math.isnan(value)])
    if 2 * len(values) < draws:
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def majority(votes: Sequence[bool]) -> bool | None:
    """What more than half of the votes say; ``None`` where they are even, or where there are none.

    >>> majority([True, True, False]), majority([True, False]), majority([])
    (True, None, None)
    """
    yes = sum(votes)
    return None if 2 * yes == len(votes) else 2 * yes > len(votes)
