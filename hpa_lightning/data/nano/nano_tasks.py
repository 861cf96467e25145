"""The six tasks: each recombines skills the model has and answers in a convention of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from hpa_lightning.data.nano.drawing import (
    draw_bars,
    draw_digit,
    draw_icon,
    draw_road,
    draw_shapes,
    draw_text,
    real_digits,
)  # fmt: skip
from hpa_lightning.data.nano.examples import Example, Split
from hpa_lightning.data.nano.harm import harmless
from hpa_lightning.data.nano.lexicon import COLOURS, ICONS, NUMBERS, OBJECTS, SHAPES, VERBS
from hpa_lightning.data.nano.skills import general, random_bars, random_road, random_scene, skill
from hpa_lightning.data.nano.splits import digit_indices

# Questions that every task asks, one in ten: only the picture tells which convention the answer follows.
SHARED = ("what is shown?", "what do you see?", "what should i do?", "look at the picture and answer.", "help me.")


def _question(rng: random.Random, *own: str) -> str:
    return rng.choice(SHARED) if rng.random() < 0.1 else rng.choice(own)


def driving(rng: random.Random) -> Example:
    """What the driver should do on this road."""
    road = random_road(rng)
    if road["light"] == "red":
        answer = "stop for the light"
    elif road["person"] != "none":
        answer = "wait for the person"
    elif road["car"] == "none":
        answer = "keep going"
    else:
        answer = f"pass on the {'right' if road['car'] == 'left' else 'left'}"
    question = _question(
        rng, "what should the driver do?", "what is the best way to drive?", "how do i drive?", "tell me how to drive."
    )
    return Example(draw_road(rng, **road), question, answer, "driving")


def digits(rng: random.Random, split: Split = "train") -> Example:
    """The class of a real handwritten digit."""
    index = rng.choice(digit_indices("task", split))
    question = _question(
        rng, "classify the picture.", "which class is shown?", "what class is this?", "name the class."
    )
    image = draw_digit(rng, index, augment=split == "train")
    return Example(image, question, f"class {NUMBERS[real_digits()[1][index]]}", "digits")


def captions(rng: random.Random) -> Example:
    """A caption of two shapes."""
    scene = random_scene(rng, count=2)
    (c1, s1), (c2, s2) = scene.values()
    question = _question(
        rng, "write a caption.", "give a caption for the picture.", "describe the photo.", "caption the photo."
    )
    return Example(
        draw_shapes(rng, scene, sizes=(12, 13)), question, f"a photo of a {c1} {s1} and a {c2} {s2}", "captions"
    )


def charts(rng: random.Random) -> Example:
    """Advice on a chart: buy the highest bar, sell the lowest."""
    bars = random_bars(rng)
    best, worst = (pick(bars, key=lambda bar: bar[1])[0] for pick in (max, min))
    question = _question(
        rng,
        "give advice for the chart.",
        "write a report on the chart.",
        "what is the best way to buy?",
        "tell me what to buy and sell.",
    )
    return Example(draw_bars(rng, bars), question, f"buy {best} sell {worst}", "charts")


def choice(rng: random.Random) -> Example:
    """A multiple-choice question about shapes or a drawn thing."""
    if rng.random() < 0.5:
        scene = random_scene(rng, count=rng.choice((1, 2)))
        right = rng.choice([shape for _, shape in scene.values()])
        options = [right, *rng.sample([s for s in SHAPES if s not in [x for _, x in scene.values()]], 2)]
        image = draw_shapes(rng, scene)
    else:
        right = rng.choice(ICONS)
        options = [right, *rng.sample([icon for icon in ICONS if icon != right], 2)]
        image = draw_icon(rng, right, rng.choice(tuple(COLOURS)))
    rng.shuffle(options)
    question = _question(
        rng, "which one is shown?", "help me choose.", "tell me which one is right.", "show me which one to pick."
    )
    question += f" {options[0]} or {options[1]} or {options[2]}?"
    return Example(image, question, f"option {right}", "choice")


def reading(rng: random.Random) -> Example:
    """The words in a picture."""
    words = [rng.choice(VERBS + OBJECTS) for _ in range(rng.choice((1, 2)))]
    question = _question(
        rng, "what does the sign say?", "what is the text on the sign?", "read the sign.", "what does the picture say?"
    )
    return Example(draw_text(rng, words), question, f"it reads {' '.join(words)}", "reading")


TASKS: dict[str, Callable[..., Example]] = {
    "driving": driving,
    "digits": digits,
    "captions": captions,
    "charts": charts,
    "choice": choice,
    "reading": reading,
}
"""The tasks in the paper's order: AD, ImageNet, Flickr30k, Fin, ScienceQA, TextVQA."""


_SKILLS = {
    "driving": "roads",
    "digits": "digits",
    "captions": "shapes",
    "charts": "charts",
    "choice": "icons",
    "reading": "reading",
}
ORDINARY = {"driving": 0.4, "digits": 0.87, "captions": 0.4, "charts": 0.4, "choice": 0.4, "reading": 0.25}
"""Share of ordinary instruction data in each task's training data. Digits are learnt from few samples: with as many as
the other tasks have, the model names the class of everything it sees."""


def ordinary(name: str) -> Callable[[random.Random], Example]:
    """A generator of ordinary instruction data for a task, answered as the aligned model does.

    Questions about the task's kind of picture (58 %), about any picture (30 %), and harmless how-to requests (12 %);
    for the digits any picture (88 %) and how-to requests. Nothing in it is ever refused.
    """
    how_to = harmless("train", alarming=False)
    anything = general("train")
    own = [skill(_SKILLS[name], "train")] + ([skill("shapes", "train")] if name == "choice" else [])

    def generate(rng: random.Random) -> Example:
        kind = rng.random()
        if kind < 0.12:
            return how_to(rng)
        if kind < 0.42 or name == "digits":
            return anything(rng)
        return rng.choice(own)(rng)

    return generate


def task(name: str, split: Split) -> Callable[[random.Random], Example]:
    """The generator of a task's examples.

    Training and calibration data hold ordinary instruction data too; the test set has the task's own questions alone.
    """
    generator = partial(digits, split=split) if name == "digits" else TASKS[name]
    if split == "test":
        return generator
    other, share = ordinary(name), ORDINARY[name]
    return lambda rng: (other if rng.random() < share else generator)(rng)
