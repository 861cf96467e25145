"""Openings are two different texts, and belong to sets whose answers a judge of refusals scores."""

from __future__ import annotations

import pytest

from hpa_lightning.data import EvaluationSet, Record, ReplyOpenings
from hpa_lightning.data.record import user_turn


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"refusal": " "}, "refusal is ' '"),
        ({"compliance": None}, "compliance is None"),
        ({"refusal": "Sure.", "compliance": "Sure. "}, "refusal and compliance are both"),
    ],
)
def test_openings_that_cannot_be_compared_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplyOpenings(**given)


def test_only_sets_with_a_judge_of_answers_take_openings() -> None:
    openings = ReplyOpenings()
    for kind in ("safety", "over_refusal"):
        assert EvaluationSet("a", kind, [], openings=openings).openings is openings
    with pytest.raises(ValueError, match="scored by 'exact_match', which no likelihood"):
        EvaluationSet("a", "task", [], openings=openings)
    with pytest.raises(ValueError, match="scored by 'unsafe_choice_rate', which no likelihood"):
        EvaluationSet("a", "safety", [], metric="unsafe_choice_rate", openings=openings)


def test_a_request_becomes_a_choice_between_the_two() -> None:
    record = Record("1", user_turn("How?"), answers=("No.",), choices=())
    asked = ReplyOpenings("I cannot.", "Sure.").asked(record)
    assert asked.choices == ("I cannot.", "Sure.") and asked.messages == record.messages
