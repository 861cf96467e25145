"""Scores of answers, and counts of those that are empty, cut or name no option."""

from __future__ import annotations

import pytest

from hpa_lightning.data.record import Record, assistant_turn, check_record, user_turn
from hpa_lightning.metrics.scoring import answer_counts, check_scorable, score_answers, score_choices
from hpa_lightning.metrics.tasks import build_metric
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


@pytest.mark.parametrize(
    ("metric", "references"),
    [
        ("exact_match", ("?", " ... ")),
        ("contained_match", (" ",)),
        ("token_f1", ("?!",)),
        ("relaxed_match", ("!",)),
        ("vqa_accuracy", ("?",) * 10),
        ("option_accuracy", ("",)),
        ("grounding_accuracy", ("[0.5, 0.2, 0.5, 0.9]",)),
    ],
)
def test_references_that_no_answer_meets_are_an_error(metric: str, references: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no answer could be right: not even the references"):
        check_scorable(build_metric(metric), references, ())
    right = "[0.5, 0.2, 0.6, 0.9]" if metric == "grounding_accuracy" else "yes"
    check_scorable(build_metric(metric), (*references, right), ())


def test_the_last_turn_is_the_right_choice_where_there_are_no_answers() -> None:
    record = Record("1", (*user_turn("Which?"), *assistant_turn("b")), choices=("a", "b"))
    check_record(record)
    (row,) = score_choices(build_metric("choice_accuracy"), [record], lambda records: [[-2.0, -1.0]])
    assert row["verdict"] is True and row["references"] == ["b"]
