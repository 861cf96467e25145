"""Drawn pictures show what they say."""

import random

import numpy as np
import pytest
from PIL import Image

from hpa_lightning.smol.drawn_pictures import COLOURS, bar_chart, to_square, typeset_request, typeset_word


@pytest.mark.parametrize("size", [(10, 40), (700, 300), (1, 900)])
def test_any_picture_becomes_a_whole_square_on_white(size: tuple[int, int]) -> None:
    square = to_square(Image.new("RGBA", size, (255, 0, 0, 255)))
    assert square.size == (224, 224) and square.mode == "RGB"
    red = np.asarray(square)[..., 1] < 50
    assert red.any(0).sum() == max(1, round(224 * size[0] / max(size)))
    assert red.any(1).sum() == max(1, round(224 * size[1] / max(size)))
    clear = to_square(Image.new("RGBA", size, (255, 0, 0, 0)))
    assert np.asarray(clear).min() == 255


def test_bars_have_their_heights_and_colours() -> None:
    pixels = np.asarray(bar_chart({"red": 100, "blue": 50, "green": 10}, 100)).astype(int)
    heights = {
        name: (np.abs(pixels - np.array(COLOURS[name])).sum(-1) < 10).any(1).sum() for name in ("red", "blue", "green")
    }
    assert abs(heights["blue"] / heights["red"] - 0.5) < 0.02 and abs(heights["green"] / heights["red"] - 0.1) < 0.02


@pytest.mark.parametrize("words", [1, 20, 90])
def test_a_request_of_any_length_stays_in_the_picture(words: int) -> None:
    pixels = np.asarray(typeset_request("harmful " * words).convert("L"))
    assert pixels[:, -4:].min() == 255 and pixels[-4:].min() == 255 and pixels.min() < 60


def test_a_word_is_drawn_whole_and_the_same_for_the_same_seed() -> None:
    for number in range(40):
        first, again = (np.asarray(typeset_word(random.Random(number), "yellow")) for _ in range(2))
        assert np.array_equal(first, again)
        paper = first[0, 0]
        assert all((edge == paper).all() for edge in (first[0], first[-1], first[:, 0], first[:, -1])), number
