"""Exact match, token F1 and containment."""

from fractions import Fraction

import pytest

from hpa_lightning import metrics
from hpa_lightning.metrics import exact_match, token_f1


@pytest.mark.parametrize(
    ("prediction", "references", "correct"),
    [
        ("red", ("red",), True),
        ("  Red . ", ("red",), True),
        ("RED!", ("blue", "red"), True),
        ("two  cubes", ("two cubes.",), True),
        ("", ("red",), False),
        ("", ("",), False),
        (".", (".",), False),
        ("re", ("red",), False),
        ("red cube", ("red",), False),
        ("-5", ("5",), False),
        ("3.5", ("35",), False),
    ],
)
def test_exact_match(prediction: str, references: tuple[str, ...], correct: bool) -> None:
    assert float(exact_match([prediction], [references])) == float(correct)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("a dog", ("a dog",), Fraction(1)),
        ("a dog , running .", ("A dog, running",), Fraction(1)),
        ("dog dog", ("dog",), Fraction(2, 3)),  # precision 1/2, recall 1: the repetition counts against it
        ("a red cube", ("a blue cube", "sphere"), Fraction(2, 3)),
        ("cat", ("dog",), Fraction(0)),
        ("", ("dog",), Fraction(0)),
        ("", ("",), Fraction(0)),
        (". ,", (". ,",), Fraction(0)),
    ],
)
def test_token_f1(prediction: str, references: tuple[str, ...], expected: Fraction) -> None:
    assert float(token_f1([prediction], [references])) == pytest.approx(float(expected))


def test_containment_is_the_published_one() -> None:
    """A part of a word counts, letter case does not, and the answer is taken as it is: "10" is no part of "1 0"."""
    answers = [("It is NORTH.", "north"), ("north", "no"), ("1 0", "10"), ("no", "north"), ("a  b", "a b")]
    scores = [float(metrics.contained_match([said], [(expected,)])) for said, expected in answers]
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0]
