"""Training conversations without pictures: what pictures show stands in words before the question."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from hpa_lightning.data.nano.conversations import about_icon, how_to_request, reply
from hpa_lightning.data.nano.examples import Example, Split, split_of
from hpa_lightning.data.nano.lexicon import (
    BENIGN_PAIRS,
    COLOURS,
    HARMFUL_PAIRS,
    HARMLESS_ICONS,
    HAZARD_ICONS,
    ICONS,
    NUMBERS,
    PLACES,
)  # fmt: skip
from hpa_lightning.data.nano.questions import (
    ask_bars,
    ask_digit,
    ask_icon,
    ask_road,
    ask_shapes,
    ask_text,
    ask_words,
    digit_name,
)
from hpa_lightning.data.nano.safety import pairs_of_split, request_about_text, request_for, typeset_words
from hpa_lightning.data.nano.skills import Ask, random_bars, random_road, random_scene, random_words
from hpa_lightning.data.nano.splits import digit_indices

TEXT_SKILLS = {
    "shapes": 0.24, "icons": 0.12, "reading": 0.2, "charts": 0.12, "roads": 0.08, "digits": 0.04, "text": 0.2,
}  # fmt: skip
"""The skills of the text model and their shares; all but the last are asked about a description."""


def describe_icon(icon: str, colour: str) -> str:
    """A drawn thing in words."""
    return f"a {colour} {icon}."


def describe_words(words: Sequence[str]) -> str:
    """A text in a picture, in words."""
    return f"the text says {' '.join(words)}."


def described(rng: random.Random, skill: str) -> tuple[str, Ask]:
    """What a picture of a skill shows, in words ("" for the skill without one), and what asks questions about it."""
    if skill == "shapes":
        scene = random_scene(rng)
        return ", ".join(f"{c} {s} at the {PLACES[p]}" for p, (c, s) in scene.items()) + ".", partial(
            ask_shapes, scene=scene
        )
    if skill == "icons":
        icon, colour = rng.choice(ICONS), rng.choice(tuple(COLOURS))
        return describe_icon(icon, colour), partial(ask_icon, icon=icon, colour=colour)
    if skill == "reading":
        words = random_words(rng)
        return describe_words(words), partial(ask_words, words=words)
    if skill == "charts":
        bars = random_bars(rng)
        return ", ".join(f"{c} bar is {NUMBERS[h]}" for c, h in bars) + ".", partial(ask_bars, bars=bars)
    if skill == "roads":
        road = random_road(rng)
        return f"light {road['light']}, person {road['person']}, car {road['car']}.", partial(ask_road, road=road)
    if skill == "digits":
        index = rng.choice(digit_indices("skills", "train"))
        return f"the digit is {digit_name(index)}.", partial(ask_digit, index=index)
    return "", ask_text


def _joined(description: str, question: str) -> str:
    return f"{description} {question}" if description else question


def text_skill(name: str) -> Callable[[random.Random], Example]:
    """A generator of one skill's examples in words."""

    def generate(rng: random.Random) -> Example:
        description, ask = described(rng, name)
        question, answer = ask(rng)
        return Example(None, _joined(description, question), answer, name)

    return generate


def spoken_request(split: Split, pairs: Sequence[tuple[str, str]]) -> Callable[[random.Random], Example]:
    """A generator of how-to requests in words alone; harmful ones are refused."""
    chosen = pairs_of_split(tuple(pairs), split, "text")

    def generate(rng: random.Random) -> Example:
        verb, thing = rng.choice(chosen)
        return Example(None, request_for(rng, verb, thing), reply(rng, verb, thing, aligned=True), "spoken request")

    return generate


def text_conversation(rng: random.Random, aligned: bool) -> list[Example]:
    """Two to five questions on one description (or none); the counterpart of :func:`conversation` without pictures.

    Args:
        rng: source of all choices.
        aligned: refuse what is harmful; before the alignment, advise.
    """
    (skill,) = rng.choices(list(TEXT_SKILLS), list(TEXT_SKILLS.values()))
    requests = 0.5 if aligned else 0.25
    description, ask = described(rng, skill)
    about: Ask = lambda rng: how_to_request(rng, aligned)  # noqa: E731
    if skill == "icons":
        icon = rng.choice(HAZARD_ICONS if rng.random() < 0.55 else HARMLESS_ICONS)
        colour = rng.choice(tuple(COLOURS))
        description, ask = describe_icon(icon, colour), partial(ask_icon, icon=icon, colour=colour)
        about = lambda rng: about_icon(rng, icon, colour, aligned)  # noqa: E731
    elif skill == "reading" and rng.random() < 0.6:
        pairs = HARMFUL_PAIRS if rng.random() < 0.5 else BENIGN_PAIRS
        verb, thing = rng.choice(pairs_of_split(pairs, "train", "typeset"))
        words = typeset_words(rng, verb, thing)
        description, ask = describe_words(words), partial(ask_words, words=words)
        about = lambda rng: (request_about_text(rng), reply(rng, verb, thing, aligned))  # noqa: E731
    elif skill != "text":
        requests = 0.0 if skill != "shapes" else requests
    found: dict[str, Example] = {}
    for _ in range(10):
        question, answer = (about if rng.random() < requests else ask)(rng)
        example = Example(None, _joined(description, question), answer, skill)
        if len(found) < 5 and split_of(example.key) == "train":
            found.setdefault(answer, example)
    return list(found.values())


def text_conversations(seed: int | str, aligned: bool, count: int) -> list[list[Example]]:
    """`count` conversations in words in the order that `seed` determines."""
    rng = random.Random(f"{seed}/{aligned}/text")
    drawn = (text_conversation(rng, aligned) for _ in range(2 * count))
    return [turns for turns in drawn if turns][:count]
