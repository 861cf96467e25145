"""One form of the characters that are typed in several ways: no score depends on which of them a model writes."""

import warnings
from itertools import product

import pytest

from hpa_lightning import metrics
from hpa_lightning.metrics.tasks.characters import plain_characters

TYPOGRAPHY = str.maketrans({"'": "\u2019", "-": "\u2212"})
HYPHENS = str.maketrans({"'": "\u02bc", "-": "\u2010"})
FULL_WIDTH = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)})

ANSWERS = [
    ("exact_match", "I don't know", "i don't know"),
    ("exact_match", "a T-shirt", "a t-shirt"),
    ("token_f1", "the dog's t-shirt", "dog's t-shirt"),
    ("relaxed_match", "-5.1", "-5"),
    ("relaxed_match", "1,234", "1234"),
    ("relaxed_match", "-45%", "-45%"),
    ("grounding_accuracy", "[-1, -2, 30, 40]", "[-1, -2, 30, 40]"),
    ("option_accuracy", "I don't think it's A - it's C.", "C"),
    ("option_accuracy", "It's B.", "B"),
    ("option_accuracy", "A - a cat", "A"),
    ("option_accuracy", "A - a cat", "a cat"),
    ("option_accuracy", "The answer is: a cat", "a cat"),
    ("option_accuracy", "**a cat**", "a cat"),
    ("option_accuracy", "B.-5", "-5"),
]


@pytest.mark.parametrize(("case", "typed"), list(product(ANSWERS, [TYPOGRAPHY, HYPHENS, FULL_WIDTH])))
def test_no_score_depends_on_how_characters_are_typed(case: tuple[str, str, str], typed: dict[int, str]) -> None:
    name, prediction, reference = case
    score = getattr(metrics, name)
    expected = float(score([prediction], [(reference,)]))
    assert expected > 0
    assert float(score([prediction.translate(typed)], [(reference,)])) == expected
    assert float(score([prediction], [(reference.translate(typed),)])) == expected


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\u201cyes\u201d", '"yes"'),
        ("10\u00b2 m", "10^2 m"),
        ("10\u2013\u207b3", "10--3"),
        ("\u30b3\u30fc\u30d2\u30fc", "\u30b3\u30fc\u30d2\u30fc"),  # a long vowel is no dash
        ("caf\u00e9", "caf\u00e9"),
    ],
)
def test_what_is_one_character_and_what_is_another(text: str, plain: str) -> None:
    assert plain_characters(text) == plain


@pytest.mark.parametrize(
    "text", ["The answer is B\u2014the cat.", "Option B\u2014it is black.", "B\u2014a cat", "\u2014> B"]
)
def test_an_option_ends_at_an_em_dash(text: str) -> None:
    assert float(metrics.option_accuracy([text], [("B",)])) == 1.0


def test_a_subscript_behind_a_number_is_its_base() -> None:
    assert plain_characters("101\u2082 log\u2081\u2080 H\u2082O") == "101_2 log10 H2O"
    assert float(metrics.relaxed_match(["101\u2082"], [("1012",)])) == 0.0


@pytest.mark.parametrize("name", ["cider", "token_f1"])
def test_scorers_of_words_tell_of_scripts_without_spaces(name: str) -> None:
    """A whole sentence would be one word: 0 for a caption that is nearly right."""
    scorer = getattr(metrics, name)
    written = ["一只猫坐在木桌子上休息", "一只狗在绿草地上奔跑"]
    said = [text.replace("木", "").replace("绿", "") for text in written]
    with pytest.warns(UserWarning, match="script without spaces"):
        assert float(scorer(said, [(text,) for text in written])) == 0
    parted = [" ".join(text[start : start + 2] for start in range(0, len(text), 2)) for text in written]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(scorer(parted, [(text,) for text in parted])) > 0
