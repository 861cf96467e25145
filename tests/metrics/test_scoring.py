"""Scores of answers, and counts of those that are empty, cut or name no option."""

from __future__ import annotations

from hpa_lightning.metrics.scoring import answer_counts, score_answers
from hpa_lightning.metrics.tasks.options import OptionAccuracy


def test_answers_that_name_no_option_are_counted() -> None:
    predictions = ["B", "(C)", "A banana", "I don't know.", "", "a banana"]
    rows = score_answers(OptionAccuracy(), predictions, [("B", "a banana")] * 6, predictions)
    assert [row["score"] for row in rows] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert [row["no_option"] for row in rows] == [False, False, False, True, True, False]
    stored = [{"response": said, **row} for said, row in zip(predictions, rows, strict=True)]
    assert answer_counts(stored) == {"empty": 1, "no_option": 2}
    assert answer_counts([{"response": "a"}]) == {"empty": 0}


def test_what_is_not_known_is_not_counted() -> None:
    assert answer_counts([{"response": " "}, {"response": "a"}]) == {"empty": 1}
    said = ["!!!!", "\ufffd", "?", "7", "\u662f"]
    assert answer_counts([{"response": text} for text in said]) == {"empty": 3}
    assert answer_counts([{"response": "", "cut": True}, {"response": "a", "cut": False}]) == {"empty": 1, "cut": 1}
    assert answer_counts([{"response": "a", "choices": ["a", "b"]}]) == {}
