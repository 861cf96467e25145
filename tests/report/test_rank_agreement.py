"""Kendall's tau against published numbers, enumeration by hand, and a slow bootstrap of its own."""

from __future__ import annotations

import math
import random
from itertools import combinations, permutations

import numpy as np
import pytest

from hpa_lightning.report.rank_agreement import Agreement, means_of, rank_agreement, ranks

# Eight people by height and by weight, a common example of reference works (English Wikipedia, "Rank correlation"): 22
# pairs in the same order, 6 in opposite ones. Kendall (Rank Correlation Methods, appendix table 1): 0.031 for S = 16.
HEIGHT, WEIGHT = [1, 2, 3, 4, 5, 6, 7, 8], [3, 4, 1, 2, 5, 7, 8, 6]

# The example in the documentation of scipy.stats.kendalltau.
TIED, OTHER = [12, 2, 1, 12, 2], [1, 4, 7, 1, 0]
TAU_OF_TIED = -0.4714045207910316


def single(values: list[float]) -> list[list[float]]:
    return [[value] for value in values]


def slow_tau(one: list[float], other: list[float]) -> float:
    """NaN where a side has no order."""
    pairs = [
        (np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in combinations(list(zip(one, other, strict=True)), 2)
    ]
    squares = sum(abs(x) for x, _ in pairs) * sum(abs(y) for _, y in pairs)
    return float(sum(x * y for x, y in pairs) / math.sqrt(squares)) if squares else math.nan


def slow_p(one: list[float], other: list[float]) -> float:
    """How many of all orders have a tau as far from 0."""
    taus = [abs(slow_tau(list(order), other)) for order in permutations(one)]
    return sum(found >= abs(slow_tau(one, other)) - 1e-9 for found in taus) / len(taus)


def test_published_rankings() -> None:
    found = rank_agreement(single(HEIGHT), single(WEIGHT), draws=20)
    assert found.tau == pytest.approx(16 / 28)
    assert found.p == pytest.approx(2 * 0.031, abs=1e-3) and not found.drawn
    assert rank_agreement(single(TIED), single(OTHER), draws=20).tau == pytest.approx(TAU_OF_TIED)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 3]),
        ([1, 2, 3, 4], [4, 3, 2, 1]),
        ([5, 1, 4, 2, 3], [5, 2, 4, 1, 3]),
        (HEIGHT[:6], WEIGHT[2:]),
        (TIED, OTHER),
        ([1, 1, 2, 3], [1, 2, 2, 4]),
        ([0, 0, 0, 0, 1], [1, 2, 3, 4, 5]),
    ],
)
def test_p_is_that_of_all_orders(one: list[float], other: list[float]) -> None:
    found = rank_agreement(single(one), single(other), draws=5)
    assert found.tau == pytest.approx(slow_tau(one, other))
    assert found.p == pytest.approx(slow_p(one, other)) and not found.drawn


def test_many_methods_with_ties_have_a_p_of_drawn_orders() -> None:
    tied = [1, 1, *HEIGHT[2:]]
    found = rank_agreement(single(tied), single(WEIGHT), draws=5)
    assert found.drawn and found.tau == pytest.approx(slow_tau(tied, WEIGHT))
    assert found.p == pytest.approx(slow_p(tied, WEIGHT), abs=0.02)


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    draw = np.random.default_rng(3)
    seeds = (1, 2, 2, 3, 2, 2, 2, 5)
    one, other = (
        [list(draw.normal(level, 2.5, number)) for level, number in enumerate(numbers)]
        for numbers in (seeds, seeds[::-1])
    )
    found = rank_agreement(one, other, draws=1500)
    generator = random.Random(5)
    taus = []
    for _ in range(3000):
        means = [
            [np.mean([generator.choice(values) for _ in range(max(len(values) - 1, 1))]) for values in side]
            for side in (one, other)
        ]
        drawn = [generator.randrange(8) for _ in range(8)]
        if not math.isnan(tau := slow_tau(*([side[place] for place in drawn] for side in means))):
            taus.append(tau)
    assert [found.low, found.high] == pytest.approx(np.percentile(taus, (2.5, 97.5)), abs=0.06)
    assert found.low < found.tau < found.high


def test_noisy_seeds_widen_the_interval_and_a_single_one_tells_nothing() -> None:
    """The means are the same in all three."""
    levels = [float(level) for level in range(12)]
    alone = rank_agreement(single(levels), single(levels), draws=200)
    calm = rank_agreement([[level, level] for level in levels], single(levels), draws=200)
    noisy = rank_agreement([[level - 5, level + 5] for level in levels], single(levels), draws=200)
    assert alone.tau == calm.tau == noisy.tau == 1
    assert math.isnan(alone.low) and math.isnan(calm.high), "every resample agrees: no interval, not one of width 0"
    assert noisy.high > noisy.low and noisy.low < 0.6


def test_resamples_without_an_order_are_counted() -> None:
    """One method differs on the first side: it is in no resample with probability (3/4)^4, alone in it with 1/4^4."""
    found = rank_agreement(single([0, 0, 0, 1]), single([1, 2, 3, 4]), draws=2000)
    assert found.without_order == pytest.approx((3**4 + 1) / 4**4, abs=0.03)
    assert rank_agreement(single(HEIGHT), single(WEIGHT), draws=200).without_order == 0


def test_equal_but_for_rounding_is_a_tie() -> None:
    assert len(set(means_of([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2]]))) == 1
    assert ranks([3.0, 1.0, 3.0, 2.0], higher_is_better=False) == [3.5, 1.0, 3.5, 2.0]


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, second = (rank_agreement(single(TIED), single(OTHER), draws=50) for _ in range(2))
    assert isinstance(first, Agreement) and first == second


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (single([1, 2, 3]), single([1, 2, 3]), "got 3 methods; expected at least 4"),
        (single([1, 2, 3, 4]), single([1, 2, 3]), "got 4 and 3 methods; expected the same"),
        (single([1, 2, 3, 4]), single([7, 7, 7, 7]), "the second side have the same value: there is no order"),
        (single([7, 7, 7, 7]), single([1, 2, 3, 4]), "the first side have the same value"),
        (single([1, 2, 3, math.nan]), single([1, 2, 3, 4]), "first side has .* a value that is not finite"),
        ([[1], [2], [3], []], single([1, 2, 3, 4]), "first side has a method without seeds"),
    ],
)
def test_what_cannot_be_compared(one: list[list[float]], other: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_agreement(one, other)
