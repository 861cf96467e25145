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
        ("红色。", ("红色",), True),  # full stop
        ("はい、", ("はい",), True),
        ("نعم؟", ("نعم",), True),
        ("हाँ।", ("हाँ",), True),
        ("ＹＥＳ！", ("yes",), True),
        ("102", ("10²",), False),
        ("10^2", ("10²",), True),
        ("10-3", ("10⁻³",), False),
        ("H2O", ("H₂O",), True),
        ("5 m2", ("5 m²",), True),
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
        ("¿Qué? ¡No!", ("qué no",), Fraction(1)),
        ("«Да», „nein“", ("да nein",), Fraction(1)),
        ("红色。", ("红色",), Fraction(1)),
    ],
)
def test_token_f1(prediction: str, references: tuple[str, ...], expected: Fraction) -> None:
    assert float(token_f1([prediction], [references])) == pytest.approx(float(expected))


def test_containment_is_the_published_one() -> None:
    """A part of a word counts, letter case does not, and the answer is taken as it is: "10" is no part of "1 0"."""
    answers = [("It is NORTH.", "north"), ("north", "no"), ("1 0", "10"), ("no", "north"), ("a  b", "a b")]
    scores = [float(metrics.contained_match([said], [(expected,)])) for said, expected in answers]
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0]
