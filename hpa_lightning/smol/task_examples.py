"""The tasks: pictures with questions and answers, each task with a convention of its own."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from hpa_lightning.smol.drawn_pictures import COLOURS, bar_chart, typeset_word
from hpa_lightning.smol.harm_prompts import Find
from hpa_lightning.smol.picture_sentences import clothes_sentence, digit_sentence, shape_sentence, word_sentence
from hpa_lightning.smol.picture_sources import SPLITS, Split, Stamp, clothes, digits, drawings, enlarged, stamps

Examples = dict[Split, list["Example"]]

_ENLARGED = 112
"""Height and width of what is enlarged from 8 or 28 pixels; the tower's processor does the rest."""


@dataclass(frozen=True)
class Example:
    """A question about one picture.

    Args:
        picture: name of the picture's file within its task (or among the stamps), without a folder.
        question: of the task.
        answer: in the task's convention.
        statement: what the picture shows, as one sentence; for the stages before the tasks.
        make: makes the picture; ``None`` where it is made elsewhere (the stamps).
    """

    picture: str
    question: str
    answer: str
    statement: str = ""
    make: Callable[[], Image.Image] | None = None


@dataclass(frozen=True)
class SmolTask:
    """A task of the benchmark.

    Args:
        name: of it.
        shows: pictures and answers in words.
        inputs: packages that its pictures are from; none if they are drawn.
        examples: makes them, by split.
        metric: of its test questions.
        max_new_tokens: longest answer in evaluation.
        sizes: pictures of each split, or what the source has left.
        stamps: its pictures are Tux Paint's, which several tasks share.
    """

    name: str
    shows: str
    inputs: tuple[str, ...]
    examples: Callable[[Find], Examples]
    metric: str = "exact_match"
    max_new_tokens: int = 8
    stamps: bool = field(default=False)


def _clothes(find: Find) -> Examples:
    found = clothes(find("dataset-fashion-mnist"), {"stages": 600, "train": 1200, "test": 250})
    question = "Which piece of clothing is this? Answer with its name alone."
    return {
        split: [
            Example(
                f"{split}-{number:05d}.png",
                question,
                name,
                clothes_sentence(name),
                partial(enlarged, 255 - pixels, _ENLARGED),
            )
            for number, pixels, name in items
        ]
        for split, items in found.items()
    }


def _kinds(find: Find) -> Examples:
    question = "To which group does the picture belong? Answer in the form: group: name."
    return _of_stamps(find, lambda stamp, rng: (question, f"group: {_KINDS.get(stamp.kind, stamp.kind)}"))


def _captions(find: Find) -> Examples:
    question = "Describe the picture in one short sentence."
    return _of_stamps(find, lambda stamp, rng: (question, stamp.caption))


def _choice(find: Find) -> Examples:
    found = stamps(find("tuxpaint-stamps-default"))
    others = {split: sorted({stamp.caption for stamp in items}) for split, items in found.items()}

    def ask(stamp: Stamp, rng: random.Random, captions: Sequence[str]) -> tuple[str, str]:
        wrong = rng.sample([caption for caption in captions if caption.casefold() != stamp.caption.casefold()], 3)
        options = [*wrong, stamp.caption]
        rng.shuffle(options)
        letters = string.ascii_uppercase[: len(options)]
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        return (
            f"Which text fits the picture?\n{listed}\nAnswer with the letter alone.",
            letters[options.index(stamp.caption)],
        )

    return {
        split: [
            Example(stamp_name(stamp), *ask(stamp, random.Random(f"smol choice {stamp_name(stamp)}"), others[split]))
            for stamp in items
        ]
        for split, items in found.items()
    }


def _shapes(find: Find) -> Examples:
    """At most five questions about a picture, no more than two of them of yes or no."""
    found = drawings(find("easy-vqa"), {"stages": 600, "train": 420, "test": 100})
    made: Examples = {}
    for split, items in found.items():
        made[split] = []
        for item in items:
            rng = random.Random(f"smol shapes {split} {item.path.name}")
            closed = [asked for asked in item.questions if asked[1] in ("yes", "no")]
            open_ = [asked for asked in item.questions if asked[1] not in ("yes", "no")]
            chosen = [*rng.sample(open_, min(3, len(open_))), *rng.sample(closed, min(2, len(closed)))]
            made[split] += [
                Example(
                    f"{split}-{item.path.stem}.png",
                    f"{question.capitalize()} Answer in one word, in small letters.",
                    answer,
                    shape_sentence(item.shape),
                    partial(_opened, item.path),
                )
                for question, answer in chosen
            ]
    return made


def _digits(find: Find) -> Examples:
    found = digits({"stages": 300, "train": 1000, "test": 250})
    return {
        split: [
            Example(
                f"{split}-{number:04d}.png",
                "Which digit is written here? Answer in the form: digit = number.",
                f"digit = {name}",
                digit_sentence(str(name)),
                partial(enlarged, pixels, _ENLARGED),
            )
            for number, pixels, name in items
        ]
        for split, items in found.items()
    }


def _charts(find: Find) -> Examples:
    """Three questions about a chart: a bar's value, which bar is the highest or lowest, and how many there are."""
    made: Examples = {split: [] for split in SPLITS}
    sizes: Sequence[tuple[Split, int]] = (("stages", 250), ("train", 450), ("test", 90))
    for split, size in sizes:
        for number in range(size):
            rng = random.Random(f"smol charts {split} {number}")
            names = rng.sample(tuple(COLOURS), rng.randint(3, 5))
            bars = dict(zip(names, rng.sample(range(10, 101, 10), len(names)), strict=True))
            order = sorted(bars, key=lambda name: bars[name])
            asked, most = rng.choice(names), rng.random() < 0.5
            statement = f"The bar chart has {len(bars)} bars; the {order[-1]} one is the highest, {bars[order[-1]]}."
            draw = partial(bar_chart, bars, 100)
            questions = (
                (f"What is the value of the {asked} bar? Answer with the number.", str(bars[asked])),
                (
                    f"Which bar is the {'highest' if most else 'lowest'}? Answer with its colour.",
                    order[-1 if most else 0],
                ),
                ("How many bars does the chart have? Answer with the number.", str(len(bars))),
            )
            made[split] += [
                Example(f"{split}-{number:04d}.png", question, answer, statement, draw)
                for question, answer in questions
            ]
    return made


def _words(find: Find) -> Examples:
    made: Examples = {split: [] for split in SPLITS}
    words = _WORDS.split()
    sizes: Sequence[tuple[Split, int]] = (("stages", 300), ("train", 1200), ("test", 240))
    for split, size in sizes:
        for number in range(size):
            word = words[number % len(words)]
            made[split].append(
                Example(
                    f"{split}-{number:04d}.png",
                    "Which word stands in the picture? Answer in the form: It reads ...",
                    f"It reads {word}",
                    word_sentence(word),
                    partial(_word_picture, f"smol words {split} {number}", word),
                )
            )
    return made


TASKS: dict[str, SmolTask] = {
    task.name: task
    for task in (
        SmolTask(
            "clothes", "pictures of clothes (Fashion-MNIST): one of ten names", ("dataset-fashion-mnist",), _clothes
        ),
        SmolTask(
            "captions",
            "photographs and drawings (Tux Paint): a caption",
            ("tuxpaint-stamps-default",),
            _captions,
            metric="cider",
            max_new_tokens=24,
            stamps=True,
        ),
        SmolTask("shapes", "drawn shapes (easy-VQA): one word", ("easy-vqa",), _shapes),
        SmolTask("digits", "handwritten digits (scikit-learn): digit = 7", (), _digits, max_new_tokens=10),
        SmolTask(
            "choice",
            "photographs and drawings: the letter of the text that fits, of four",
            ("tuxpaint-stamps-default",),
            _choice,
            metric="option_accuracy",
            stamps=True,
        ),
        SmolTask("charts", "drawn bar charts: a number or a colour", (), _charts),
        SmolTask(
            "kinds",
            "photographs and drawings: group: animals",
            ("tuxpaint-stamps-default",),
            _kinds,
            max_new_tokens=10,
            stamps=True,
        ),
        SmolTask("words", "typeset words: It reads river", (), _words, max_new_tokens=10),
    )
}
"""Name -> the task, in the order of the stream."""

_KINDS = {"naturalforces": "weather", "seasonal": "seasons", "hobbies": "hobbies"}
"""Folders of Tux Paint that are called otherwise in answers."""

_WORDS = """
apple river stone cloud tiger bread chair green house light music night ocean paper queen radio sugar
table uncle voice water yellow zebra bird cake door fish gold hand iron jump king lamp moon nest park
rain ship tree wind blue cold dark east fire girl hill idea join kite leaf milk nine open pink road
snow time
"""


def stamp_name(stamp: Stamp) -> str:
    """Return the name of a stamp's picture: its folders and its name."""
    return f"{stamp.family.replace('/', '-')}-{stamp.path.stem}.jpg"


def _of_stamps(find: Find, ask: Callable[[Stamp, random.Random], tuple[str, str]]) -> Examples:
    return {
        split: [
            Example(stamp_name(stamp), *ask(stamp, random.Random(stamp_name(stamp))), statement=stamp.caption)
            for stamp in items
        ]
        for split, items in stamps(find("tuxpaint-stamps-default")).items()
    }


def _word_picture(seed: str, word: str) -> Image.Image:
    return typeset_word(random.Random(seed), word)


def _opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def all_stamps(folder: Path) -> Iterator[Stamp]:
    """Yield the pictures that the tasks share."""
    for items in stamps(folder).values():
        yield from items
