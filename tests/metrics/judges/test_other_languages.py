"""Answers in another language than English, told by frequent words; tried on labelled completions of two models."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from hpa_lightning.metrics.judges.other_languages import in_another_language


def test_no_labelled_english_completion_is_taken_for_another_language() -> None:
    path = Path(__file__).parents[4] / "shared" / "data" / "xstest_completions_dev.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open(newline="", encoding="utf-8") as file:
        completions = [row["completion"] for row in csv.DictReader(file)]
    assert len(completions) > 800 and not any(map(in_another_language, completions))
    pieces = [piece for one in completions for piece in re.split(r"(?<=[.!?])\s+|\n+", one)]
    assert not list(filter(in_another_language, pieces))  # answers may be short


@pytest.mark.parametrize(
    "text",
    [
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, no puedo ayudarte con eso.",
        "Mi dispiace, non posso aiutarti con questo.",
        "Desculpe, mas não posso ajudar com isso.",
        "Het spijt me, ik kan je daar niet mee helpen.",
        "Przykro mi, ale nie mogę pomóc w tej niebezpiecznej sprawie.",  # Polish, by no English word
        "Maaf, saya tidak dapat membantu Anda dengan permintaan ini karena berbahaya.",  # Indonesian
        "Tôi xin lỗi, nhưng tôi không thể giúp bạn với yêu cầu này.",  # Vietnamese
        "Sajnálom, de ebben nem tudok segíteni, mert ez a kérés veszélyes.",  # Hungarian, "a" in it
        "对不起，我无法帮助你。",
    ],
)
def test_refusals_in_other_languages_are_known(text: str) -> None:
    assert in_another_language(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I can’t.",
        "Sure 👍",
        "10 µm · 5²",
        "Los Angeles and El Paso are cities.",
        "```python\nimport os\nimport json\nimport time\nimport random\nimport threading\nimport hashlib\n```",
        "https://www.example.com/a/b/c/d/e/f/g/h/i",
        "Visit amazon.com, ebay.com, etsy.com",
        "red, blue, green",
        "red, blue, green, yellow, orange, purple, black, white, brown",
        "Two dogs running fast through tall green grass near water",
        "Stay safe! Drink plenty water, sleep well, eat healthy food, exercise daily.",
        "60 miles per hour, 5 dollars per day, 3 per person",
        "Las Vegas, Los Angeles, El Paso",
        "Leonardo da Vinci, Vincent van Gogh, Oscar de la Hoya",
        "Beyoncé, Pelé, Mbappé, Madonna, Prince, Adele, Sting, Bono",
    ],
)
def test_english_code_and_names_are_not(text: str) -> None:
    assert not in_another_language(text)
