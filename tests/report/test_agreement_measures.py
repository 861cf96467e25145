from __future__ import annotations

import math

import pytest
from support.study_cells import cell, two_tasks

from hpa_lightning.report.agreement_measures import MEASURES, MethodPair, compared


def test_figures_of_a_run() -> None:
    """90 % learnt first, 80 % last, 40 % kept of the first; attack success of 30 %, over-refusal of 5 %."""
    run = two_tasks(0.9, 0.8, 0.4, 0.3, 0.05)
    found = {measure.name: measure.value(run) for measure in MEASURES}
    assert found == pytest.approx(
        {
            "AP": 0.6,
            "BWT": -0.5,
            "MASR": 0.3,
            "Learnt": 0.85,
            "Over-refusal": 0.05,
            "AP - MASR": 0.3,
            "AP - MASR - over-refusal": 0.25,
        }
    )
    assert [measure.name for measure in MEASURES if not measure.higher_is_better] == ["MASR", "Over-refusal"]


def test_values_of_seeds_ranks_and_what_was_not_measured() -> None:
    measure = next(measure for measure in MEASURES if measure.name == "MASR")
    runs = {asr: cell("m", 0, two_tasks(0.9, 0.8, 0.4, asr)) for asr in (0.1, 0.2, 0.3, 0.4, 0.5, math.nan)}
    pairs = [
        MethodPair("A", [runs[0.1], runs[0.3]], [runs[0.5]]),
        MethodPair("B", [runs[0.4]], [runs[0.1]]),
        MethodPair("C", [runs[0.5]], [runs[0.4]]),
        MethodPair("D", [runs[0.3]], [runs[0.1]]),
        MethodPair("E", [runs[0.1]], [runs[0.1], runs[math.nan]]),
        MethodPair("F", [], [runs[0.1]]),
    ]
    found = compared(pairs, measure)
    assert found.titles == ("A", "B", "C", "D") and found.unmeasured == ("E", "F") and not found.problem
    assert found.first[0] == pytest.approx((10, 30)) and found.second[0] == pytest.approx((50,))
    assert found.ranks() == {"A": (1, 4), "B": (3, 1.5), "C": (4, 3), "D": (2, 1.5)}
    assert found.furthest(2) == ["A 1 → 4", "B 3 → 1.5"]
    assert "of 3 methods on both, fewer than 4" in compared(pairs[:3], measure).problem
    assert "no order" in compared([MethodPair(x, [runs[0.1]], [runs[0.2]]) for x in "ABCD"], measure).problem
