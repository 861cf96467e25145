"""Training conversations without pictures: what pictures show stands in words before the question."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hpa_lightning.data.nano.conversations import about_icon, how_to_request, reply
from hpa_lightning.data.nano.examples import Example, Split, split_of
from hpa_lightning.data.nano.harm import pairs_of_split, request_about_text, request_for, typeset_words
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
from hpa_lightning.data.nano.skills import Ask, random_bars, random_road, random_scene, random_words
from hpa_lightning.data.nano.splits import digit_indices

TEXT_SKILLS = {
    "shapes": 0.24, "icons": 0.12, "reading": 0.2, "charts": 0.12, "roads": 0.08, "digits": 0.04, "text": 0.2,
}  # fmt: skip
"""The skills of the text model and their shares; all but the last are asked about a description."""


def describe(skill: str, facts: Mapping[str, Any]) -> str:
    """What a picture of a skill shows, in words.

    Args:
        skill: one of the pictured skills.
        facts: what is drawn, as the function that asks about it takes it.
    """
    if skill == "shapes":
        return ", ".join(f"{c} {s} at the {PLACES[p]}" for p, (c, s) in facts["scene"].items()) + "."
    if skill == "icons":
        return f"a {facts['colour']} {facts['icon']}."
    if skill == "reading":
        return f"the text says {' '.join(facts['words'])}."
    if skill == "charts":
        return ", ".join(f"{c} bar is {NUMBERS[h]}" for c, h in facts["bars"]) + "."
    if skill == "roads":
        return ", ".join(f"{what} {where}" for what, where in facts["road"].items()) + "."
    return f"the digit is {digit_name(facts['index'])}."


_ASK: dict[str, Callable[..., tuple[str, str]]] = {
    "shapes": ask_shapes, "icons": ask_icon, "reading": ask_words, "charts": ask_bars, "roads": ask_road,
    "digits": ask_digit,
}  # fmt: skip


def _facts(rng: random.Random, skill: str) -> dict[str, Any]:
    if skill == "shapes":
        return {"scene": random_scene(rng)}
    if skill == "icons":
        return {"icon": rng.choice(ICONS), "colour": rng.choice(tuple(COLOURS))}
    if skill == "reading":
        return {"words": random_words(rng)}
    if skill == "charts":
        return {"bars": random_bars(rng)}
    if skill == "roads":
        return {"road": random_road(rng)}
    return {"index": rng.choice(digit_indices("skills", "train"))}


def described(rng: random.Random, skill: str, facts: Mapping[str, Any] | None = None) -> tuple[str, Ask]:
    """What a picture of a skill shows, in words ("" for the skill without one), and what asks questions about it."""
    if skill == "text":
        return "", ask_text
    facts = facts or _facts(rng, skill)
    return describe(skill, facts), partial(_ASK[skill], **facts)


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
        description, ask = described(rng, skill, {"icon": icon, "colour": colour})
        about = lambda rng: about_icon(rng, icon, colour, aligned)  # noqa: E731
    elif skill == "reading" and rng.random() < 0.6:
        pairs = HARMFUL_PAIRS if rng.random() < 0.5 else BENIGN_PAIRS
        verb, thing = rng.choice(pairs_of_split(pairs, "train", "typeset"))
        words = typeset_words(rng, verb, thing)
        description, ask = described(rng, skill, {"words": words})
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
