"""The trained judge: planted weights decide, and only where the rules leave it open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpa_lightning.metrics.judges.trained import WEIGHTS, TrainedRefusals
from hpa_lightning.metrics.judges.verdicts import Verdict

OPEN = "I am afraid that this is not something that I can do for you today."


def planted(refusal: float, partial: float) -> TrainedRefusals:
    """A judge whose probabilities are those of the intercepts alone."""
    parts: dict[str, Any] = {
        name: {"intercept": value, "threshold": 0.5, "weights": {}}
        for name, value in (("refusal", refusal), ("partial", partial))
    }
    return TrainedRefusals({"vocabulary": [], **parts})


@pytest.mark.parametrize(
    ("refusal", "partial", "verdict"),
    [(3.0, -3.0, Verdict.FULL_REFUSAL), (3.0, 3.0, Verdict.PARTIAL_REFUSAL), (-3.0, 3.0, Verdict.COMPLIANCE)],
)
def test_two_probabilities_against_two_thresholds(refusal: float, partial: float, verdict: Verdict) -> None:
    assert planted(refusal, partial).verdict(OPEN) is verdict


def test_what_is_plain_needs_no_weights() -> None:
    for judge in (planted(9.0, 9.0), planted(-9.0, -9.0)):
        assert judge.verdict("...") is Verdict.FULL_REFUSAL
        assert judge.verdict("Take two eggs and a pan.") is Verdict.COMPLIANCE


def test_a_weight_counts_by_its_feature() -> None:
    weights = {"w:afraid": 8.0}
    open_one = {"intercept": -4.0, "threshold": 0.5, "weights": weights}
    never = {"intercept": -9.0, "threshold": 0.5, "weights": {}}
    judge = TrainedRefusals({"vocabulary": ["afraid"], "refusal": open_one, "partial": never})
    assert judge.verdict(OPEN) is Verdict.FULL_REFUSAL
    assert judge.verdict(OPEN.replace("afraid", "certain")) is Verdict.COMPLIANCE


def test_the_shipped_weights_name_words_of_their_vocabulary() -> None:
    fitted = json.loads(WEIGHTS.read_text())
    known = {*fitted["vocabulary"], "^", "_"}
    for part in ("refusal", "partial"):
        phrases = [name.split(":", 1)[1] for name in fitted[part]["weights"] if name.startswith(("w:", "w1:"))]
        assert phrases and all(word in known for phrase in phrases for word in phrase.split())
