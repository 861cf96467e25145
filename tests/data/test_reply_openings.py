"""Openings are beginnings of which none begins with another, of sets whose answers a judge of refusals scores."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from hpa_lightning.data import EvaluationSet, ReplyOpenings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"refusals is \(\); expected a list"),
        ("I cannot.", "refusals is 'I cannot.'; expected a list"),
        (("No.", " "), "refusals has ' '"),
        (("No.", None), "refusals has None"),
        (("No.", "No. "), "refusals has 'No.', with which 'No.' begins"),
        (("I can't help.", "I can't"), r"refusals has \"I can't\", with which \"I can't help.\" begins.*count twice"),
    ],
)
def test_openings_whose_probabilities_do_not_add_up_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplyOpenings(given)


def test_only_sets_with_a_judge_of_answers_take_openings() -> None:
    openings = ReplyOpenings(("No.",))
    for kind in ("safety", "over_refusal"):
        assert EvaluationSet("a", kind, [], openings=openings).openings is openings
    with pytest.raises(ValueError, match="scored by 'exact_match', which no likelihood"):
        EvaluationSet("a", "task", [], openings=openings)
    with pytest.raises(ValueError, match="scored by 'unsafe_choice_rate', which no likelihood"):
        EvaluationSet("a", "safety", [], metric="unsafe_choice_rate", openings=openings)


def test_they_are_read_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(EvaluationSet, "set", fail_untyped=False)
    found = parser.parse_object(
        {"set": {"name": "a", "kind": "safety", "data": "a.json", "openings": {"refusals": [" No. ", "I can't"]}}}
    )
    assert parser.instantiate_classes(found).set.openings == ReplyOpenings(("No.", "I can't"))
