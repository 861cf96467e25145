"""Intervals and paired differences by hand."""

from __future__ import annotations

import math
import warnings

import pytest
from scipy import stats
from support.study_cells import T2

from hpa_lightning.report import estimate
from hpa_lightning.report.significance import holm, paired_difference
from hpa_lightning.table import PValue, format_cell


@pytest.mark.parametrize("values", [[1.0, 2.0], [75.7, 76.6, 74.1, 75.0]])
def test_confidence_interval_is_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    mean, half_width = estimate(values)
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))


def test_one_value_has_no_interval() -> None:
    assert estimate([3.0]).mean == 3.0 and math.isnan(estimate([3.0]).half_width)
    assert str(estimate([3.0])) == "3.00"
    assert str(estimate([math.nan, 1.0])) == "–"


def test_holm_by_hand() -> None:
    # Ascending: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []
    without_a_test = holm([0.01, math.nan, 0.02])
    assert without_a_test[::2] == [0.02, 0.02] and math.isnan(without_a_test[1])


def test_paired_difference_by_hand() -> None:
    # Differences 2, 3, 1: mean 2, standard deviation 1. With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    found = paired_difference([3.0, 5.0, 4.0, math.nan], [1.0, 2.0, 3.0, 7.0])
    t = 2 * math.sqrt(3)
    assert found.pairs == 3 and found.p == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert tuple(found.difference) == pytest.approx((2.0, T2 / math.sqrt(3)))
    assert str(paired_difference([1.0, 2.0, 3.0], [3.0, 5.0, 4.0]).difference) == "-2.00 ± 2.48"


@pytest.mark.parametrize(
    ("values", "reference", "text", "p"),
    [
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], "+0.00 ± 0.00", "1.000"),
        ([0.1 + 0.2, 0.6 + 0.3], [0.3, 0.9], "+0.00 ± 0.00", "1.000"),  # equal but for rounding
        ([10.1, 10.2, 10.3], [5.1, 5.2, 5.3], "+5.00 ± 0.00", "–"),  # a t-test would divide by zero
        ([1.0], [2.0], "–", "–"),
        ([], [], "–", "–"),
    ],
)
def test_degenerate_differences(values: list[float], reference: list[float], text: str, p: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_difference(values, reference)
    assert (str(found.difference), format_cell(PValue(found.p))) == (text, p)
