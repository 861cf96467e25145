"""Means over seeds with their confidence intervals, paired comparisons, and Holm's correction for several of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import sem, t, ttest_rel

from hpa_lightning.table import Difference, Estimate


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and half width of its confidence interval, Student's t with n - 1 degrees of freedom.

    Equal values have an interval of width 0; a NaN among them makes both figures NaN.

    Example:
        >>> estimate([1.0, 2.0, 3.0])
        Estimate(mean=2.0, half_width=2.484...)
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return Estimate(math.nan, math.nan)
    mean = float(sample.mean())
    if len(sample) == 1 or math.isnan(mean):
        return Estimate(mean, math.nan)
    if not np.ptp(sample):  # SciPy has no interval for a scale of 0
        return Estimate(mean, 0.0)
    return Estimate(mean, _half_width(t.interval(level, len(sample) - 1, loc=mean, scale=sem(sample))))


def _half_width(interval: tuple[float, float]) -> float:
    low, high = interval
    return float(high - low) / 2


class PairedDifference(NamedTuple):
    """Mean difference with its 95 % interval, the p-value of the paired t-test, and the number of pairs."""

    difference: Difference
    p: float
    pairs: int


#: Where there is nothing to compare.
NO_DIFFERENCE = PairedDifference(Difference(math.nan, math.nan), math.nan, 0)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compare paired values, ``values - reference``; pairs with a NaN are left out.

    The p-value is two-sided and not corrected. Decision: with fewer than two pairs everything is NaN. Where all
    differences are equal (up to rounding) the t-test is undefined: the interval has width 0, and p is 1 if they are 0
    and NaN, no test, if they are not.

    Raises:
        ValueError: unequal lengths.

    Example:
        >>> result = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> str(result.difference), round(result.p, 4), result.pairs
        ('+2.00 ± 2.48', 0.0742, 3)
    """
    first, second = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"got {first.shape} values and {second.shape} of the reference; expected as many, in pairs.")
    measured = ~np.isnan(first - second)
    first, second = first[measured], second[measured]
    differences = first - second
    pairs = len(differences)
    if pairs < 2:
        return NO_DIFFERENCE._replace(pairs=pairs)
    rounding = 1e-12 * max(float(np.abs(first).max()), float(np.abs(second).max()))
    if float(np.ptp(differences)) <= rounding:
        mean = float(differences.mean())
        is_zero = abs(mean) <= rounding
        return PairedDifference(Difference(0.0 if is_zero else mean, 0.0), 1.0 if is_zero else math.nan, pairs)
    test = ttest_rel(first, second)
    return PairedDifference(
        Difference(float(differences.mean()), _half_width(test.confidence_interval())), float(test.pvalue), pairs
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests after Holm (Scandinavian Journal of Statistics 6, 1979, 65-70).

    ``p'_(i) = max_{k <= i} min(1, (m - k + 1) p_(k))`` over the ``m`` p-values in ascending order. NaN, no test, stays
    NaN and is not counted.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted
