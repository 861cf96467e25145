"""What the stages say about pictures: a sentence for each kind, also made from the questions of a task's test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hpa_lightning.smol.picture_sources import shown_shape

ASKED = (
    "What does the picture show?",
    "Describe what you see.",
    "What is in this image?",
    "Tell me what this picture shows.",
)
"""How the stages ask for the sentence."""

Asked = Sequence[tuple[str, str]]
"""Questions about one picture with their answers."""

_IN_ONE_WORD = " Answer in one word, in small letters."


def clothes_sentence(name: str) -> str:
    """Return what is said about a piece of clothing.

    >>> clothes_sentence("ankle boot"), clothes_sentence("trousers")
    ('This is a grey picture of an ankle boot.', 'This is a grey picture of trousers.')
    """
    article = "" if name == "trousers" else "an " if name[0] in "aeiou" else "a "
    return f"This is a grey picture of {article}{name}."


def shape_sentence(shape: str) -> str:
    """Return what is said about a coloured shape, such as ``"a blue triangle"``."""
    return f"The picture shows {shape}."


def digit_sentence(digit: str) -> str:
    """Return what is said about a handwritten digit."""
    return f"Somebody wrote the digit {digit} by hand."


def word_sentence(word: str) -> str:
    """Return what is said about a typeset word."""
    return f'The word "{word}" stands in the picture.'


def picture_sentence(task: str, asked: Asked) -> str | None:
    """Return the sentence about a picture of a task, from all that the task asks about it.

    ``None`` where the answers do not tell it: of charts, of groups, of letters, and of shapes for which either the
    colour or the shape is not asked.

    >>> picture_sentence("digits", [("Which digit is written here?", "digit = 7")])
    'Somebody wrote the digit 7 by hand.'
    >>> picture_sentence("shapes", [("What shape is present?", "circle"), ("What color is the shape?", "teal")])
    'The picture shows a teal circle.'
    >>> picture_sentence("charts", [("How many bars does the chart have?", "4")])
    """
    make = _MADE_OF.get(task)
    return None if make is None else make(asked)


def _of_shape(asked: Asked) -> str | None:
    shape = shown_shape([(question.removesuffix(_IN_ONE_WORD).lower(), answer) for question, answer in asked])
    told = len(shape.split()) == 3 and not shape.endswith(" shape")  # article, colour and shape
    return shape_sentence(shape) if told else None


_MADE_OF: Mapping[str, Callable[[Asked], str | None]] = {
    "clothes": lambda asked: clothes_sentence(asked[0][1]),
    "captions": lambda asked: asked[0][1],
    "shapes": _of_shape,
    "digits": lambda asked: digit_sentence(asked[0][1].rpartition(" ")[2]),
    "words": lambda asked: word_sentence(asked[0][1].rpartition(" ")[2]),
}

SAID = tuple(_MADE_OF)
"""Tasks of whose test pictures the sentence is known."""
