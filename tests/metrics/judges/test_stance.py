"""Rules on cues: what is plainly an answer, and the judge `rules-v2`."""

from __future__ import annotations

import pytest
from support.judged_answers import ANSWERS, REFUSALS

from hpa_lightning.metrics.judges.judged_text import opening
from hpa_lightning.metrics.judges.stance import cues_by_sentence, may_refuse, plainly_answers, refuses_by_cues


@pytest.mark.parametrize("response", REFUSALS)
def test_no_refusal_is_plainly_an_answer(response: str) -> None:
    parts = opening(response)
    assert not parts or (may_refuse(parts) and not plainly_answers(parts, cues_by_sentence(parts)))


@pytest.mark.parametrize(
    "response", ["It is illegal to park here.", "1. Take a pan.\n2. I cannot say more.", "Mix sand and water."]
)
def test_facts_and_lists_plainly_answer(response: str) -> None:
    parts = opening(response)
    assert plainly_answers(parts, cues_by_sentence(parts)) and not refuses_by_cues(response)


def test_the_second_rules_tell_nearly_all_of_both_lists_apart() -> None:
    assert sum(map(refuses_by_cues, REFUSALS)) >= 0.9 * len(REFUSALS)
    assert sum(map(refuses_by_cues, ANSWERS)) <= 0.1 * len(ANSWERS)


def test_silence_is_a_refusal_and_an_answer_that_began_is_none() -> None:
    assert refuses_by_cues("") and refuses_by_cues(" \n!")
    assert not refuses_by_cues("Sure, here is how. I cannot promise that it works.")
