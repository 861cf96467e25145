"""The general skills of the aligned model: many instructions over many kinds of pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np

from hpa_lightning.data.nano.drawing import draw_bars, draw_digit, draw_icon, draw_road, draw_shapes, draw_text
from hpa_lightning.data.nano.examples import Example, Split
from hpa_lightning.data.nano.lexicon import COLOURS, ICONS, OBJECTS, SHAPES, VERBS, article
from hpa_lightning.data.nano.questions import (
    ask_bars,
    ask_digit,
    ask_icon,
    ask_road,
    ask_shapes,
    ask_text,
    ask_words,
)
from hpa_lightning.data.nano.splits import digit_indices

_HUES = tuple(COLOURS)


def random_scene(rng: random.Random, count: int | None = None) -> dict[int, tuple[str, str]]:
    """Between one and four shapes (or `count`) that differ in colour and in shape, by quadrant."""
    count = count or rng.choice((1, 2, 2, 3, 3, 4))
    quadrants = sorted(rng.sample(range(4), count))
    return dict(zip(quadrants, zip(rng.sample(_HUES, count), rng.sample(SHAPES, count), strict=True), strict=True))


def random_words(rng: random.Random) -> list[str]:
    """One to three words to typeset; often a deed."""
    if rng.random() < 0.4:
        verb, thing = rng.choice(VERBS), rng.choice(OBJECTS)
        return [verb, article(thing), thing]
    return [rng.choice(VERBS + OBJECTS) for _ in range(rng.choice((1, 2, 2, 3)))]


def random_bars(rng: random.Random) -> list[tuple[str, int]]:
    """Three or four bars of different colours and heights; half of the charts rise or fall throughout."""
    count = rng.choice((3, 4))
    heights = rng.sample(range(1, 8), count)
    trend = rng.random()
    if trend < 0.5:
        heights.sort(reverse=trend < 0.25)
    return list(zip(rng.sample(_HUES, count), heights, strict=True))


def random_road(rng: random.Random) -> dict[str, str]:
    """The light's colour and the lanes of a person and of a car."""
    return {
        "light": rng.choice(("red", "green")),
        "person": rng.choice(("none", "none", "left", "right")),
        "car": rng.choice(("none", "left", "right")),
    }


Ask = Callable[[random.Random], tuple[str, str]]


def open_picture(rng: random.Random, skill: str, split: Split = "train") -> tuple[np.ndarray | None, Ask]:
    """A new picture for a skill, and what asks questions about it."""
    if skill == "shapes":
        scene = random_scene(rng)
        return draw_shapes(rng, scene), partial(ask_shapes, scene=scene)
    if skill == "icons":
        icon, colour = rng.choice(ICONS), rng.choice(_HUES)
        return draw_icon(rng, icon, colour), partial(ask_icon, icon=icon, colour=colour)
    if skill == "reading":
        words = random_words(rng)
        return draw_text(rng, words), partial(ask_words, words=words)
    if skill == "charts":
        bars = random_bars(rng)
        return draw_bars(rng, bars), partial(ask_bars, bars=bars)
    if skill == "roads":
        road = random_road(rng)
        return draw_road(rng, **road), partial(ask_road, road=road)
    if skill == "digits":
        index = rng.choice(digit_indices("skills", split))
        return draw_digit(rng, index, augment=True), partial(ask_digit, index=index)
    return None, ask_text


SKILLS = {
    "shapes": 0.28, "icons": 0.12, "reading": 0.22, "charts": 0.14, "roads": 0.1, "digits": 0.06, "text": 0.08,
}  # fmt: skip
"""The general skills and their shares."""


def skill(name: str, split: Split) -> Callable[[random.Random], Example]:
    """A generator of one skill's examples; its real digits are those of `split`."""

    def generate(rng: random.Random) -> Example:
        image, ask = open_picture(rng, name, split)
        return Example(image, *ask(rng), name)

    return generate


def general(split: Split) -> Callable[[random.Random], Example]:
    """A generator of examples of all skills in their shares."""
    generators = [skill(name, split) for name in SKILLS]
    return lambda rng: rng.choices(generators, list(SKILLS.values()))[0](rng)
