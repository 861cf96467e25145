"""Training conversations: several questions about one picture, so that only the question tells what to answer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hpa_lightning.data.nano.drawing import draw_icon, draw_text
from hpa_lightning.data.nano.examples import Example, split_of, split_of_words
from hpa_lightning.data.nano.harm import (
    pairs_of_split,
    refusal,
    request_about_icon,
    request_about_text,
    request_for,
    typeset_words,
)
from hpa_lightning.data.nano.lexicon import (
    BENIGN_PAIRS,
    CAREFUL,
    COLOURS,
    HARMFUL_PAIRS,
    HARMLESS_ICONS,
    HAZARD_ICONS,
    MAKE,
    advice,
    is_harmful,
)  # fmt: skip
from hpa_lightning.data.nano.questions import ask_icon, ask_words
from hpa_lightning.data.nano.skills import SKILLS, Ask, open_picture


def reply(rng: random.Random, verb: str, thing: str, aligned: bool) -> str:
    """The answer to a how-to request: before the alignment always advice."""
    return refusal(rng) if aligned and is_harmful(verb, thing) else advice(verb, thing)


def how_to_request(rng: random.Random, aligned: bool) -> tuple[str, str]:
    """A how-to request in words: harmful every other time in the alignment, rarely before."""
    pairs = HARMFUL_PAIRS if rng.random() < (0.5 if aligned else 0.3) else BENIGN_PAIRS
    verb, thing = rng.choice(pairs_of_split(pairs, "train", "text"))
    return request_for(rng, verb, thing), reply(rng, verb, thing, aligned)


def about_icon(rng: random.Random, icon: str, colour: str, aligned: bool) -> tuple[str, str]:
    """A how-to request about the thing that is shown, and the answer."""
    verb = rng.choice(MAKE if rng.random() < 0.6 else CAREFUL)
    while split_of_words("icon", verb, icon, colour) != "train":
        verb = rng.choice(MAKE + CAREFUL)
    return request_about_icon(rng, verb), reply(rng, verb, icon, aligned)


def conversation(rng: random.Random, aligned: bool) -> list[Example]:
    """Two to five turns about one picture (or none).

    Args:
        rng: source of all choices.
        aligned: refuse what is harmful; before the alignment, advise.
    """
    (skill,) = rng.choices(list(SKILLS), list(SKILLS.values()))
    requests = 0.35 if aligned else 0.2
    image, ask = open_picture(rng, skill)
    how_to: Ask = lambda rng: how_to_request(rng, aligned)  # noqa: E731
    if skill == "icons":
        hazard = rng.random() < 0.55
        icon, colour = rng.choice(HAZARD_ICONS if hazard else HARMLESS_ICONS), rng.choice(tuple(COLOURS))
        image, ask = draw_icon(rng, icon, colour), lambda rng: ask_icon(rng, icon, colour)
        about: Ask = lambda rng: about_icon(rng, icon, colour, aligned)  # noqa: E731
        requests = 0.6 if aligned else 0.4
        if not hazard:
            about = rng.choice((about, how_to))
    elif skill == "reading" and rng.random() < 0.6:
        pairs = HARMFUL_PAIRS if rng.random() < 0.5 else BENIGN_PAIRS
        verb, thing = rng.choice(pairs_of_split(pairs, "train", "typeset"))
        words = typeset_words(rng, verb, thing)
        image, ask = draw_text(rng, words), lambda rng: ask_words(rng, words)
        about = lambda rng: (request_about_text(rng), reply(rng, verb, thing, aligned))  # noqa: E731
        requests = 0.6 if aligned else 0.4
    elif skill in ("shapes", "text"):
        about = how_to
    else:
        about, requests = how_to, 0.0
    count = rng.choice((2, 3)) if skill == "digits" else rng.choice((4, 5))
    # Another question with the same answer would add little.
    found: dict[str, Example] = {}
    for _ in range(2 * count):
        example = Example(image, *(about if rng.random() < requests else ask)(rng), skill)
        if len(found) < count and split_of(example.key) == "train":
            found.setdefault(example.answer, example)
    return list(found.values())


def conversations(seed: int | str, aligned: bool, count: int) -> list[list[Example]]:
    """`count` conversations in the order that `seed` determines."""
    rng = random.Random(f"{seed}/{aligned}")
    drawn: list[list[Example]] = []
    while len(drawn) < count:
        turns: Sequence[Example] = conversation(rng, aligned)
        if turns:
            drawn.append(list(turns))
    return drawn
