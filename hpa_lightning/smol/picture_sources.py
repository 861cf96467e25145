"""Pictures with what they show, out of the inputs, each source divided once into stages, training and tests."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from hpa_lightning.parsing import parse_json, read_text

Split = Literal["stages", "train", "test"]
SPLITS: tuple[Split, ...] = ("stages", "train", "test")

Item = TypeVar("Item")

CLOTHES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""The classes of Fashion-MNIST, in its order."""

_DRAWN_COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
_DRAWN_SHAPES = ("circle", "rectangle", "triangle")
_STAMPS = "usr/share/tuxpaint/stamps"
_FASHION = "usr/share/datasets/fashion-mnist"
_FASHION_SHAPE = 28


def divided(
    items: Sequence[Item], sizes: Mapping[Split, int], seed: str, group: Callable[[Item], Any] | None = None
) -> dict[Split, list[Item]]:
    """Divide items into the splits, shuffled by ``seed``; what belongs to one group comes into one split.

    Args:
        items: in a fixed order.
        sizes: items of each split; the last one takes what is left, up to its size.
        seed: of the shuffling.
        group: what an item belongs to; each belongs to itself by default.

    Raises:
        ValueError: fewer items than the splits but the last one want.

    >>> {split: len(found) for split, found in divided(range(10), {"test": 3, "train": 99}, "a").items()}
    {'test': 3, 'train': 7}
    """
    groups: dict[Any, list[Item]] = {}
    for place, item in enumerate(items):
        groups.setdefault(place if group is None else group(item), []).append(item)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    found: dict[Split, list[Item]] = {}
    place = 0
    for split, size in sizes.items():
        found[split] = []
        while len(found[split]) < size and place < len(order):
            found[split] += order[place]
            place += 1
    short = [split for split in list(sizes)[:-1] if len(found[split]) < sizes[split]]
    if short:
        raise ValueError(f"{len(items)} items are too few for {dict(sizes)}: {short} would not be full.")
    return found


@dataclass(frozen=True)
class Stamp:
    """A picture of Tux Paint.

    Args:
        path: of the PNG file.
        kind: the first folder, such as ``"animals"``.
        family: the folder that it lies in, such as ``"animals/birds"``.
        caption: its English text.
    """

    path: Path
    kind: str
    family: str
    caption: str


@cache
def stamps(folder: Path) -> dict[Split, list[Stamp]]:
    """Return Tux Paint's pictures that have an English caption, by split.

    Pictures with the same caption (the two shapes of a letter, a photograph and a drawing) come into one split, so that
    no test asks for a caption that was trained on with a picture alike.

    Args:
        folder: of the input ``tuxpaint-stamps-default``.
    """
    found = []
    for path in sorted((folder / _STAMPS).rglob("*.png")):
        text = path.with_suffix(".txt")
        # Mirrored and flipped forms of a picture have no text of their own.
        caption = read_text(text).splitlines()[0].strip() if text.is_file() else ""
        if caption:
            place = path.relative_to(folder / _STAMPS)
            found.append(Stamp(path, place.parts[0], place.parent.as_posix(), caption))
    return divided(
        found, {"test": 230, "stages": 180, "train": 10_000}, "smol stamps", lambda one: one.caption.casefold()
    )


def clothes(folder: Path, sizes: Mapping[Split, int]) -> dict[Split, list[tuple[int, np.ndarray, str]]]:
    """Return number, picture ``(28, 28)`` uint8 and class of Fashion-MNIST, by split.

    Tests are of its own test pictures; the others of its training pictures.

    Args:
        folder: of the input ``dataset-fashion-mnist``.
        sizes: pictures of each split.
    """
    found: dict[Split, list[tuple[int, np.ndarray, str]]] = {}
    for name, splits in {"train": ("stages", "train"), "t10k": ("test",)}.items():
        pictures = _idx(folder / _FASHION / f"{name}-images-idx3-ubyte.gz", 16).reshape(
            -1, _FASHION_SHAPE, _FASHION_SHAPE
        )
        labels = _idx(folder / _FASHION / f"{name}-labels-idx1-ubyte.gz", 8)
        wanted: dict[Split, int] = {split: sizes[split] for split in SPLITS if split in splits}
        for split, numbers in divided(range(len(labels)), wanted, f"smol clothes {name}").items():
            found[split] = [(number, pictures[number], CLOTHES[labels[number]]) for number in numbers]
    return found


@dataclass(frozen=True)
class Drawing:
    """A picture of easy-VQA with its questions.

    Args:
        path: of the PNG file.
        questions: question and answer.
        shape: what it shows, such as ``"a blue triangle"``.
    """

    path: Path
    questions: tuple[tuple[str, str], ...]
    shape: str


def drawings(folder: Path, sizes: Mapping[Split, int]) -> dict[Split, list[Drawing]]:
    """Return easy-VQA's pictures by split; tests are of its own test pictures.

    Args:
        folder: of the input ``easy-vqa``.
        sizes: pictures of each split.
    """
    found: dict[Split, list[Drawing]] = {}
    for name, splits in {"train": ("stages", "train"), "test": ("test",)}.items():
        place = folder / "easy_vqa" / "data" / name
        asked: dict[int, list[tuple[str, str]]] = {}
        for question, answer, number in parse_json(read_text(place / "questions.json"), f"easy-VQA {name}"):
            asked.setdefault(int(number), []).append((str(question), str(answer)))
        wanted: dict[Split, int] = {split: sizes[split] for split in SPLITS if split in splits}
        for split, numbers in divided(sorted(asked), wanted, f"smol drawings {name}").items():
            found[split] = [
                Drawing(place / "images" / f"{number}.png", tuple(asked[number]), shown_shape(asked[number]))
                for number in numbers
            ]
    return found


def digits(sizes: Mapping[Split, int]) -> dict[Split, list[tuple[int, np.ndarray, str]]]:
    """Return number, picture ``(8, 8)`` uint8 (dark on light) and digit of scikit-learn's digits, by split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ordered: dict[Split, int] = {"test": sizes["test"], "stages": sizes["stages"], "train": sizes["train"]}
    found = divided(range(len(data.target)), ordered, "smol digits")
    return {
        split: [(n, (255 - data.images[n] * (255 / 16)).astype(np.uint8), str(data.target[n])) for n in numbers]
        for split, numbers in found.items()
    }


def enlarged(picture: np.ndarray, size: int) -> Image.Image:
    """Return a small grey picture ``(h, w)`` as a smooth RGB picture of ``size`` x ``size``."""
    return Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


def _idx(path: Path, header: int) -> np.ndarray:
    """The bytes of a file of MNIST's format behind its header."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def shown_shape(questions: Sequence[tuple[str, str]]) -> str:
    """Return what the questions tell of a picture, which has one shape of one colour: "a blue triangle".

    A word of a question that is answered by a word is true of the picture, and so is that word; one of a question of
    yes or no is true if the answer is yes, or no where the question has "not" or "no".
    """
    told: set[str] = set()
    for question, answer in questions:
        words = set(question.rstrip("?").split())
        if answer not in ("yes", "no"):
            told |= words | {answer}
        elif (answer == "yes") != bool(words & {"not", "no"}):
            told |= words
    colour = next((name for name in _DRAWN_COLOURS if name in told), "")
    shape = next((name for name in _DRAWN_SHAPES if name in told), "shape")
    return " ".join(filter(None, ("a", colour, shape)))
