"""How a question of multiple choice is put: with its options and for a letter, or alone."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from hpa_lightning.data.published_files import conversation
from hpa_lightning.data.record import Record
from hpa_lightning.metrics.tasks.options import option_references

#: ``"letter"``: the options are shown and their letters are the choices; ``"text"``: the question is shown alone and
#: the texts of the options are the choices.
Asking = Literal["letter", "text"]
ASKINGS = ("letter", "text")

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""The last line of the prompt in LLaVA's scripts."""


def question_record(
    identity: str,
    question: str,
    options: Sequence[str],
    right: int,
    images: Sequence[Any],
    ask: Asking,
    instruction: str,
    where: str,
) -> Record:
    """Return the record of a question.

    With ``ask="letter"`` the prompt is the question, a line ``A. ...`` for each option and the instruction, as LLaVA
    puts it; the answers are the letter and the option's text, unless it is as another one's letter. With ``"text"`` the
    prompt is the question.

    Args:
        identity: id of the record.
        question: its text, a hint included.
        options: their texts, at most 26.
        right: the place of the right one.
        images: of the question.
        ask: see above.
        instruction: the prompt's last line, with ``ask="letter"``; may be empty.
        where: the row, for messages.

    Raises:
        ValueError: named by ``where``: marks of images in the texts.

    >>> options = ["a cat", "a dog"]
    >>> record = question_record("1", "What is it?", options, 1, [], "letter", "Answer by a letter.", "row 1")
    >>> record.prompt.splitlines(), record.choices, record.answers
    (['What is it?', 'A. a cat', 'B. a dog', 'Answer by a letter.'], ('A', 'B'), ('B', 'a dog'))
    """
    if ask == "text":
        record = conversation(identity, question, images, where=where)
        return replace(record, choices=tuple(options), answers=(options[right],))
    letters = string.ascii_uppercase[: len(options)]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    prompt = "\n".join([question, *lines, *([instruction] if instruction else [])])
    record = conversation(identity, prompt, images, where=where)
    answers = option_references(letters[right], options[right], letters)
    return replace(record, choices=tuple(letters), answers=answers)
