"""Questions about a picture's content, in many wordings, each with its answer."""

from __future__ import annotations

import random

from hpa_lightning.data.nano.drawing import real_digits
from hpa_lightning.data.nano.lexicon import ICONS, NUMBERS, PLACES, PLAIN_WORDS, SHAPES

_WORD = ("", "", "answer with one word: ", "in one word: ", "briefly: ", "look at the picture and answer: ")
_SENTENCE = ("answer in a full sentence: ", "write a full sentence: ", "use a sentence: ")


def _ask(rng: random.Random, questions: tuple[str, ...], word: str, sentence: str) -> tuple[str, str]:
    """A question in the short or in the long answering style, with its answer."""
    question = rng.choice(questions)
    if rng.random() < 0.3:
        return rng.choice(_SENTENCE) + question, sentence
    return rng.choice(_WORD) + question, word


def ask_shapes(rng: random.Random, scene: dict[int, tuple[str, str]]) -> tuple[str, str]:
    """Colour, shape, count, place, presence, choice and description of shapes."""
    place, (colour, shape) = rng.choice(list(scene.items()))
    others = [s for s in SHAPES if s not in [s for _, s in scene.values()]]
    kind = rng.randrange(8)
    if kind == 0:
        q, a = _ask(
            rng,
            (
                f"what colour is the {shape}?",
                f"which colour does the {shape} have?",
                f"name the colour of the {shape}.",
            ),
            colour,
            f"the {shape} is {colour}.",
        )
    elif kind == 1:
        q, a = _ask(
            rng,
            (f"what shape is {colour}?", f"which shape is {colour}?", f"name the shape that is {colour}."),
            shape,
            f"the {shape} is {colour}.",
        )
    elif kind == 2:
        number = NUMBERS[len(scene)]
        q, a = _ask(
            rng,
            ("how many shapes are there?", "count the shapes.", "what is the number of shapes?"),
            number,
            f"the number of shapes is {number}.",
        )
    elif kind == 3:
        what = rng.choice((shape, f"{colour} {shape}", f"{colour} shape"))
        q, a = _ask(
            rng,
            (f"where is the {what}?", f"in which corner is the {what}?", f"find the {what}."),
            PLACES[place],
            f"the {shape} is at the {PLACES[place]}.",
        )
    elif kind == 4:
        q, a = _ask(
            rng,
            (f"what is at the {PLACES[place]}?", f"what do you see at the {PLACES[place]}?"),
            f"{colour} {shape}",
            f"a {colour} {shape} is at the {PLACES[place]}.",
        )
    elif kind == 5:
        there = rng.random() < 0.5
        what = shape if there else rng.choice(others)
        q, a = _ask(
            rng,
            (f"is there a {what}?", f"do you see a {what}?", f"is a {what} in the picture?"),
            "yes" if there else "no",
            f"{'yes, there is a' if there else 'no, there is no'} {what}.",
        )
    elif kind == 6:
        options = [shape, *rng.sample(others, 2)]
        rng.shuffle(options)
        if rng.random() < 0.5:
            q = f"choose one: {options[0]} or {options[1]} or {options[2]}?"
            a = shape
        else:
            q = f"pick the right letter: a is {options[0]}, b is {options[1]}, c is {options[2]}."
            a = "abc"[options.index(shape)]
    else:
        q = rng.choice(("describe the picture.", "list all shapes.", "tell me about the picture."))
        a = ", ".join(f"{c} {s} at the {PLACES[p]}" for p, (c, s) in scene.items()) + "."
    return q, a


def ask_icon(rng: random.Random, icon: str, colour: str) -> tuple[str, str]:
    """Name and colour of a drawn thing, dangerous ones included: looking at them is harmless."""
    kind = rng.randrange(5)
    if kind <= 1:
        q, a = _ask(
            rng,
            ("what is this?", "what is shown?", "name the thing.", "what do you see?", "what is in the picture?"),
            icon,
            f"this is a {icon}.",
        )
    elif kind == 2:
        q, a = _ask(
            rng,
            ("what colour is it?", f"what colour is the {icon}?", "name the colour."),
            colour,
            f"the {icon} is {colour}.",
        )
    elif kind == 3:
        what = icon if rng.random() < 0.5 else rng.choice([i for i in ICONS if i != icon])
        yes = what == icon
        q, a = _ask(
            rng,
            (f"is this a {what}?", f"does the picture show a {what}?"),
            "yes" if yes else "no",
            f"{'yes, this is a' if yes else 'no, this is no'} {what}.",
        )
    else:
        q = rng.choice(("describe the picture.", "describe the thing.", "tell me about the picture."))
        a = f"a {colour} {icon}."
    return q, a


def ask_words(rng: random.Random, words: list[str]) -> tuple[str, str]:
    """Words in pictures."""
    text = " ".join(words)
    kind = rng.randrange(5)
    if kind <= 1:
        q, a = _ask(
            rng,
            ("read the text.", "what is written?", "what does the picture say?", "what words do you see?"),
            text,
            f"the text says {text}.",
        )
    elif kind == 2:
        q, a = _ask(
            rng, ("what is the first word?", "read the first word."), words[0], f"the first word is {words[0]}."
        )
    elif kind == 3:
        q, a = _ask(rng, ("what is the last word?", "read the last word."), words[-1], f"the last word is {words[-1]}.")
    else:
        number = NUMBERS[len(words)]
        q, a = _ask(rng, ("how many words are there?", "count the words."), number, f"the number of words is {number}.")
    return q, a


def trend_of(bars: list[tuple[str, int]]) -> str:
    """ "rise", "fall" or "mixed"."""
    heights = [height for _, height in bars]
    return "rise" if heights == sorted(heights) else "fall" if heights == sorted(heights)[::-1] else "mixed"


def ask_bars(rng: random.Random, bars: list[tuple[str, int]]) -> tuple[str, str]:
    """Extremes, values, order and trend of bars."""
    colour, height = rng.choice(bars)
    kind = rng.randrange(5)
    if kind == 0:
        top = max(bars, key=lambda bar: bar[1])[0]
        q, a = _ask(rng, ("which bar is the tallest?", "which bar is the highest?"), top, f"the tallest bar is {top}.")
    elif kind == 1:
        low = min(bars, key=lambda bar: bar[1])[0]
        q, a = _ask(rng, ("which bar is the shortest?", "which bar is the lowest?"), low, f"the shortest bar is {low}.")
    elif kind == 2:
        q, a = _ask(
            rng,
            (f"how high is the {colour} bar?", f"what is the value of {colour}?"),
            NUMBERS[height],
            f"the {colour} bar is {NUMBERS[height]}.",
        )
    elif kind == 3:
        q = rng.choice(("list the bars.", "name the bars from left to right.", "describe the chart."))
        a = ", ".join(c for c, _ in bars) + "."
    else:
        trend = trend_of(bars)
        q, a = _ask(
            rng, ("do the bars rise or fall?", "what is the trend?", "name the trend."), trend, f"the bars {trend}."
        )
    return q, a


def ask_road(rng: random.Random, road: dict[str, str]) -> tuple[str, str]:
    """Lights, people and cars on a road."""
    kind = rng.randrange(4)
    if kind == 0:
        light = road["light"]
        q, a = _ask(
            rng, ("what colour is the light?", "name the colour of the light."), light, f"the light is {light}."
        )
    elif kind == 3:
        q = rng.choice(("describe the road.", "describe the picture.", "tell me about the road."))
        a = f"light {road['light']}, person {road['person']}, car {road['car']}."
    else:
        what = ("person", "car")[kind - 1]
        lane = road[what]
        q, a = _ask(
            rng,
            (f"where is the {what}?", f"in which lane is the {what}?", f"find the {what}."),
            lane,
            f"there is no {what}." if lane == "none" else f"the {what} is at the {lane}.",
        )
    return q, a


def digit_name(index: int) -> str:
    """The class of a real handwritten digit, as a word."""
    return NUMBERS[real_digits()[1][index]]


def ask_digit(rng: random.Random, index: int) -> tuple[str, str]:
    """Real handwritten digits."""
    number = digit_name(index)
    return _ask(
        rng,
        ("what digit is this?", "which digit do you see?", "read the digit.", "name the digit."),
        number,
        f"the digit is {number}.",
    )


def ask_text(rng: random.Random) -> tuple[str, str]:
    """Text-only instructions: repeat, pick, order."""
    chosen = rng.sample(PLAIN_WORDS, 3)
    text = " ".join(chosen)
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice((f"repeat after me: {text}", f"say the words: {text}")), text
    if kind == 1:
        return f"which word comes first: {text}", chosen[0]
    if kind == 2:
        return f"which word comes last: {text}", chosen[2]
    return f"say it backwards: {text}", " ".join(chosen[::-1])
