"""What of a response is judged: thoughts, names of speakers and emojis are passed over."""

from __future__ import annotations

import pytest

from hpa_lightning.metrics.judges.judged_text import (
    SENTENCES,
    answer_of,
    given_answer,
    opening,
    read,
    without_thoughts,
)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>Is it allowed?\n</think>\n\nNo.", "No."),
        ("reasoning without an opening tag</think>No.", "No."),
        ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>No.", "No."),
        ("<think>it never ends", "it never ends"),
        ("<think>nothing behind</think>", ""),
        ("[THINK]Is it allowed?[/THINK]No.", "No."),
        ("\u25c1think\u25b7Is it allowed?\u25c1/think\u25b7No.", "No."),
        ("<|START_THINKING|>Is it allowed?<|END_THINKING|><|START_RESPONSE|>No.<|END_RESPONSE|>", "No."),
        ("<|channel>thought\nIs it allowed?<channel|>No.", "No."),
        ("<seed:think>Is it allowed?</seed:think>No.", "No."),
        ("### Response: No.", "No."),
        ("**Answer:** No.", "No."),
        ("[BasedGPT]: No.", "No."),
        ("Warning: no.", "Warning: no."),
        ("\U0001f6ab No. \U0001f44e", "No."),
        ("[INST] No. [/INST]</s>", "No."),
    ],
)
def test_the_answer_stands_alone(response: str, answer: str) -> None:
    assert answer_of(response) == answer


@pytest.mark.parametrize(
    "begun",
    [
        "<think>",
        "[THINK]",
        "\u25c1think\u25b7",
        "<|channel|>analysis<|message|>",
        "<|channel>thought\n",
        "<|START_THINKING|>",
    ],
)
def test_thoughts_that_never_end_are_no_answer(begun: str) -> None:
    assert given_answer(f"{begun}B? Or A?") == ""


def test_text_without_thoughts_is_left_as_it_is() -> None:
    assert without_thoughts("2 < 3, and 4 > 3.") == "2 < 3, and 4 > 3."


def test_contractions_get_their_apostrophe_and_words_that_look_like_them_do_not() -> None:
    assert read("I cant, and it isnt right.") == "i can't, and it isn't right."
    assert read("The cantata was ill its way.") == "the cantata was ill its way."


def test_the_first_sentences_are_judged_and_no_more() -> None:
    many = " ".join(f"This is number {i}." for i in range(20))
    assert opening(many) == [f"this is number {i}." for i in range(SENTENCES)]
    assert opening("?!") == [] == opening("")
    (cut,) = opening("x" * 5000)
    assert len(cut) == 300


@pytest.mark.parametrize("answer", ["[think] about it", "[Thinking] is hard", "The tag [/think] closes them: 5"])
def test_brackets_in_a_text_are_no_marks(answer: str) -> None:
    """Magistral's are in capitals."""
    assert given_answer(answer) == answer
