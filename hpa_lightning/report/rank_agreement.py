"""Do two studies put the same methods in the same order? Kendall's tau-b with an interval and an exact p-value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, permutation_test, rankdata

from hpa_lightning.report.front_statistics import interval

FEWEST_METHODS = 4
"""Of three methods or fewer even the same order has p = 1/3: an order of them tells nothing."""

PERMUTATIONS = 1999
"""Orders that are drawn for a p-value where some methods are tied and there are more orders than that."""

_DRAWS = 1000
_DECIMALS = 9  # means that differ by rounding alone are ties


@dataclass(frozen=True)
class Agreement:
    """How far two orders of the same methods agree.

    Args:
        methods: how many.
        tau: Kendall's tau-b: 1 for the same order, -1 for the reverse one, about 0 for unrelated orders.
        low, high: its 95 % interval; NaN where every resample has the same tau.
        p: two-sided, of the hypothesis that every assignment of the second order to the methods is as likely.
        drawn: whether ``p`` is of `PERMUTATIONS` drawn orders and not of all of them.
        without_order: share of the resamples without an order on some side, which the interval does without.
    """

    methods: int
    tau: float
    low: float
    high: float
    p: float
    drawn: bool
    without_order: float


def rank_agreement(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], draws: int = _DRAWS, seed: int = 0
) -> Agreement:
    """Compare the order of methods by their means on two studies.

    ``tau_b = (C - D) / sqrt((C + D + T_1) (C + D + T_2))`` over the pairs of methods: C in the same order on both, D in
    opposite ones, ``T_1`` tied on the first study alone, ``T_2`` on the second alone (Kendall, Biometrika 33, 1945,
    239-251), by `scipy.stats.kendalltau`.

    The p-value without ties is that of the exact distribution over all orders (`scipy.stats.kendalltau`). With ties it
    is how often `abs(tau)` is as large in a permutation test (`scipy.stats.permutation_test`): over all orders of up to
    six methods, over 1999 drawn ones of more. It takes the means as they are and knows nothing of seeds.

    The interval is a percentile bootstrap at two levels. Each resample

    1. draws, for each method and side on its own, ``n - 1`` of its ``n`` seeds with replacement, and takes their mean.
       Drawing ``n`` would give a mean of too small a variance, by ``(n - 1) / n``, half of it for two seeds (Rao and
       Wu, JASA 83, 1988, 231-241);
    2. draws as many methods as there are, with replacement. A method that is drawn twice has the same means both times,
       and such a pair counts for nothing in tau-b.

    The ends are the 2.5 and 97.5 percentiles. What this interval is not:

    - of a method with one seed on a side, every resample takes that seed: the interval tells nothing of its seeds;
    - methods share seeds, and are drawn apart: what a seed does to all methods alike is counted, which makes the
      interval rather too wide;
    - with fewer than about ten methods it is rough. It cannot leave [-1, 1], and is too short where tau is near one of
      the two; where all resamples have the same tau there is none (NaN);
    - resamples in which a side has no order (one method alone, or all tied) are left out, and counted
      (`Agreement.without_order`);
    - methods are not drawn from any population: it says how much the answer hangs on the choice of these.

    Args:
        first: for each method the values of its seeds on one study, shape ``(methods, seeds)``, where the number of
            seeds may differ; in any unit, means that are equal to nine decimals are ties.
        second: the same methods on the other study.
        draws: resamples.
        seed: of the resamples and the permutations.

    Raises:
        ValueError: not as many methods on both sides, fewer than four, a method without seeds, a value that is not
            finite, or a side on which all methods are equal.

    Example:
        >>> found = rank_agreement([[1.0], [2.0], [3.0], [4.0]], [[1.0], [2.0], [4.0], [3.0]])
        >>> round(found.tau, 3), round(found.p, 3), found.drawn
        (0.667, 0.333, False)
    """
    if len(first) != len(second):
        raise ValueError(f"got {len(first)} and {len(second)} methods; expected the same methods on both sides.")
    if len(first) < FEWEST_METHODS:
        raise ValueError(f"got {len(first)} methods; expected at least {FEWEST_METHODS}, to compare their orders.")
    sides = []
    for name, side in (("first", first), ("second", second)):
        values = [np.asarray(item, dtype=np.float64) for item in side]
        if not all(item.ndim == 1 and item.size and np.isfinite(item).all() for item in values):
            raise ValueError(f"the {name} side has a method without seeds, or a value that is not finite.")
        if not has_order(means_of(values)):
            raise ValueError(f"all methods of the {name} side have the same value: there is no order to compare.")
        sides.append(values)
    one, other = (means_of(side) for side in sides)
    ties = any(len(np.unique(side)) < len(side) for side in (one, other))
    tau = _tau(one, other)
    resampled = _resampled(sides, draws, seed)
    spread = interval(tau, resampled) if resampled.size and np.ptp(resampled) > 0 else None
    low, high = (math.nan, math.nan) if spread is None else (spread.low, spread.high)
    drawn = ties and math.factorial(len(first)) > PERMUTATIONS
    return Agreement(len(first), tau, low, high, _p_value(one, other, ties, seed), drawn, 1 - len(resampled) / draws)


def means_of(side: Sequence[Sequence[float] | NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over the seeds of each method, shape ``(methods,)``; means that are equal but for rounding become equal."""
    found: NDArray[np.float64] = np.round([np.mean(values) for values in side], _DECIMALS)
    return found


def has_order(values: NDArray[np.float64]) -> bool:
    """Whether two of the values differ."""
    return bool(np.ptp(values) > 0)


def ranks(values: Sequence[float] | NDArray[np.float64], higher_is_better: bool) -> list[float]:
    """Rank of each value, 1 for the best; equal ones share the mean of their ranks.

    Example:
        >>> ranks([5.0, 9.0, 5.0], higher_is_better=True)
        [2.5, 1.0, 2.5]
    """
    found: list[float] = rankdata(-np.asarray(values) if higher_is_better else values).tolist()
    return found


def _tau(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    found = float(kendalltau(one, other, method="asymptotic").statistic)  # the method is that of its p-value
    return round(found, 12)  # 1, not 1 - 2e-16: equal taus have to be equal


def _p_value(one: NDArray[np.float64], other: NDArray[np.float64], ties: bool, seed: int) -> float:
    if not ties:
        return float(kendalltau(one, other, method="exact").pvalue)
    test = permutation_test(
        (one,),
        lambda order: abs(_tau(order, other)),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=PERMUTATIONS,
        random_state=seed,
    )
    return float(test.pvalue)


def _resampled(sides: Sequence[Sequence[NDArray[np.float64]]], draws: int, seed: int) -> NDArray[np.float64]:
    """Tau of each resample that has one, shape ``(up to draws,)``."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        methods = generator.integers(len(sides[0]), size=len(sides[0]))
        one, other = (
            means_of([generator.choice(values, max(len(values) - 1, 1)) for values in side])[methods] for side in sides
        )
        if has_order(one) and has_order(other):
            found.append(_tau(one, other))
    return np.array(found)
