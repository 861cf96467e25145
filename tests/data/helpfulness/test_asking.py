"""How a question of multiple choice is put."""

from __future__ import annotations

import pytest

from hpa_lightning.data.helpfulness.asking import INSTRUCTION, question_record
from hpa_lightning.data.record import check_record
from hpa_lightning.metrics import option_accuracy

OPTIONS = ("a cat", "two dogs", "no bird")


def test_by_letter_options_are_shown_and_both_letter_and_text_are_right() -> None:
    record = question_record("7", "What is it?", OPTIONS, 2, ["a.png"], "letter", INSTRUCTION, "row 1")
    assert record.prompt.endswith("What is it?\nA. a cat\nB. two dogs\nC. no bird\n" + INSTRUCTION)
    assert record.choices == ("A", "B", "C") and record.answers == ("C", "no bird") and record.images == ("a.png",)
    check_record(record)
    bare = question_record("7", "What is it?", OPTIONS, 0, [], "letter", "", "row 1")
    assert bare.prompt.endswith("C. no bird")


def test_by_text_the_question_stands_alone_and_the_options_are_compared() -> None:
    record = question_record("7", "What is it?", OPTIONS, 1, [], "text", INSTRUCTION, "row 1")
    assert record.prompt == "What is it?" and record.choices == OPTIONS and record.answers == ("two dogs",)


@pytest.mark.parametrize("text", ["B", "b", "(B)", "B.", "B?", "Ｂ", "$B$", "**b**"])
def test_an_option_that_is_another_ones_letter_is_right_by_its_own_alone(text: str) -> None:
    record = question_record("7", "Which grade?", (text, "A"), 0, [], "letter", "", "row 1")
    assert record.answers == ("A",)
    assert float(option_accuracy(["B", "A"], [record.answers] * 2)) == 0.5
    own = question_record("7", "Which grade?", ("A", text), 1, [], "letter", "", "row 1")
    assert float(option_accuracy(["B", "A"], [own.answers] * 2)) == 0.5
    other = question_record("7", "Which grade?", ("D", "A"), 0, [], "letter", "", "row 1")  # of no option here
    assert other.answers == ("A", "D")


def test_marks_of_images_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        question_record("7", "What is <image>?", OPTIONS, 0, [], "letter", "", "row 1")
