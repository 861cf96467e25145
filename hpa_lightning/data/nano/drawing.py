"""Pictures of 32 x 32 pixels: shapes, icons, bars, roads, typeset words and real handwritten digits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from hpa_lightning.data.nano.art import CAR_ART, FONT_ROWS, ICON_ART, PERSON_ART
from hpa_lightning.data.nano.lexicon import BACKGROUNDS, COLOURS

SIZE = 32
"""Height and width of every picture, pixels."""


def _bitmap(art: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in line] for line in art.strip("\n").split("\n")])


_FONT = {
    line[0]: np.array([[bit == "1" for bit in row] for row in line[2:].split()])
    for line in FONT_ROWS.strip().split("\n")
}
_ICONS = {name: np.kron(_bitmap(art), np.ones((2, 2), dtype=bool)) for name, art in ICON_ART.items()}
_PERSON, _CAR = _bitmap(PERSON_ART), _bitmap(CAR_ART)


@cache
def _shape(name: str, size: int) -> np.ndarray:
    """Boolean mask (size, size) of a geometric shape."""
    half = (size - 1) / 2
    y, x = (np.mgrid[:size, :size] - half) / (half + 0.5)
    radius = np.hypot(x, y)
    found: np.ndarray = {
        "circle": radius <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.92,
        "triangle": abs(x) <= (y + 1) / 2,
        "cross": (abs(x) <= 0.3) | (abs(y) <= 0.3),
        "ring": (radius <= 1) & (radius >= 0.55),
        "diamond": abs(x) + abs(y) <= 1,
    }[name]
    return found


def _colour(rng: random.Random, name: str) -> np.ndarray:
    base = COLOURS[name] if name in COLOURS else BACKGROUNDS[name]
    return np.clip([channel + rng.randint(-10, 10) for channel in base], 0, 255).astype(np.uint8)


def _canvas(rng: random.Random) -> np.ndarray:
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:] = _colour(rng, rng.choice(tuple(BACKGROUNDS)))
    return image


def _stamp(image: np.ndarray, mask: np.ndarray, top: int, left: int, colour: np.ndarray) -> None:
    image[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = colour


def draw_shapes(
    rng: random.Random, things: dict[int, tuple[str, str]], sizes: Sequence[int] = (10, 11, 12, 13)
) -> np.ndarray:
    """Shapes in quadrants: `things` maps a quadrant (0 to 3, row by row) to (colour, shape)."""
    image = _canvas(rng)
    for quadrant, (colour, shape) in things.items():
        size = rng.choice(sizes)
        top = 16 * (quadrant // 2) + rng.randint(0, 16 - size)
        left = 16 * (quadrant % 2) + rng.randint(0, 16 - size)
        _stamp(image, _shape(shape, size), top, left, _colour(rng, colour))
    return image


def draw_icon(rng: random.Random, icon: str, colour: str) -> np.ndarray:
    """One icon of 24 x 24 pixels somewhere in the picture."""
    image = _canvas(rng)
    _stamp(image, _ICONS[icon], rng.randint(0, 8), rng.randint(0, 8), _colour(rng, colour))
    return image


def draw_text(rng: random.Random, words: Sequence[str], row: int | None = None) -> np.ndarray:
    """Up to four words of up to eight letters, one a line, in a font of 3 x 5 pixels.

    Args:
        row: the line of the first word; None: any that leaves room.
    """
    image = _canvas(rng)
    colour = _colour(rng, rng.choice(("white", "yellow", "pink", "green")))
    row = rng.randint(0, 4 - len(words)) if row is None else row
    for word in words:
        left = rng.choice((0, (SIZE - 4 * len(word)) // 2))
        for offset, letter in enumerate(word):
            _stamp(image, _FONT[letter], 8 * row + 2, left + 4 * offset, colour)
        row += 1
    return image


def draw_bars(rng: random.Random, bars: Sequence[tuple[str, int]]) -> np.ndarray:
    """A bar chart: (colour, height from 1 to 7) from left to right, four bars at most."""
    image = _canvas(rng)
    for column, (colour, height) in enumerate(bars):
        left = 8 * column + 1
        image[SIZE - 4 * height :, left : left + 6] = _colour(rng, colour)
    return image


def draw_road(rng: random.Random, light: str, person: str, car: str) -> np.ndarray:
    """A road of two lanes: the light's colour; the lane ("left", "right", "none") of a person and of a car."""
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:] = np.array((20, 60, 25)) + rng.randint(-10, 10)
    image[8:, 4:28] = 70 + rng.randint(-10, 10)
    image[10::4, 15:17] = 230
    image[11::4, 15:17] = 230
    _stamp(image, _shape("circle", 7), rng.randint(0, 1), rng.choice((1, 12, 24)), _colour(rng, light))
    for lane, mask, colours in ((person, _PERSON, ("white", "pink")), (car, _CAR, ("blue", "orange", "purple"))):
        if lane != "none":
            left = {"left": 6, "right": 18}[lane] + rng.randint(-1, 1)
            top = rng.randint(9, 10) if mask is _PERSON else rng.randint(20, 22)
            _stamp(image, mask, top, left, _colour(rng, rng.choice(colours)))
    return image


@lru_cache(maxsize=1)
def real_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 handwritten digits of scikit-learn's `load_digits`.

    Returns:
        pictures, uint8 (1797, 8, 8) with 0 the background and 16 the ink; labels, int64 (1797,).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target


def draw_digit(rng: random.Random, index: int, augment: bool = False) -> np.ndarray:
    """Digit `index` of `real_digits`, enlarged to 24 x 24 pixels (augmented: up to 4 pixels off the centre)."""
    ink = np.kron(real_digits()[0][index], np.ones((3, 3)))[..., None] / 16.0
    image = _canvas(rng).astype(np.float64)
    top, left = (rng.randint(2, 6), rng.randint(2, 6)) if augment else (4, 4)
    window = image[top : top + 24, left : left + 24]
    window += ink * (_colour(rng, "white") - window)
    return image.astype(np.uint8)
