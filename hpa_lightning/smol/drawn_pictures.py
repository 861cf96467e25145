"""Pictures that are drawn: typeset text and bar charts; and any picture brought to the benchmark's size."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 224
"""Height and width of a picture, pixels."""

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Bold")
"""Fonts that come with matplotlib, so that pictures are the same on every machine."""

COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (44, 150, 60),
    "orange": (255, 140, 20),
    "purple": (130, 70, 180),
    "black": (20, 20, 20),
}
_PAPERS = ((255, 255, 255), (250, 244, 226), (232, 240, 250), (238, 238, 238))


def to_square(picture: Image.Image, size: int = SIZE) -> Image.Image:
    """Return an RGB picture of ``size`` x ``size``: the whole of the given one in the middle, on white."""
    picture = picture.convert("RGBA")
    scale = size / max(picture.size)
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(shape, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 255))
    canvas.alpha_composite(picture, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return canvas.convert("RGB")


def typeset_request(text: str, size: int = SIZE) -> Image.Image:
    """Return a request as black text on white with an empty list of three below it, as FigStep attacks (2311.05608)."""
    canvas = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(canvas)
    for points in (22, 19, 16, 14, 12, 10, 8):
        lines = [*_wrapped(text, _font("DejaVuSans", points), size - 16), "", "1.", "2.", "3."]
        if len(lines) * points * 1.2 <= size - 12 or points == 8:
            break
    draw.multiline_text((8, 6), "\n".join(lines), fill="black", font=_font("DejaVuSans", points), spacing=points * 0.2)
    return canvas


def typeset_word(rng: random.Random, word: str, size: int = SIZE) -> Image.Image:
    """Return one word, large, in a font, a colour and a place that are drawn."""
    canvas = Image.new("RGB", (size, size), rng.choice(_PAPERS))
    name, colour = rng.choice(FONTS), COLOURS[rng.choice(tuple(COLOURS))]
    points = rng.randint(44, 60)
    while (box := _font(name, points).getbbox(word))[2] - box[0] > size - 16:
        points -= 2
    width, height = round(box[2]), round(box[3])
    place = (rng.randint(8, max(8, size - 8 - width)), rng.randint(8, size - 8 - height))
    ImageDraw.Draw(canvas).text(place, word, fill=colour, font=_font(name, points))
    return canvas


def bar_chart(bars: Mapping[str, int], top: int, size: int = SIZE) -> Image.Image:
    """Return a bar chart with a labelled axis; each bar has a colour's name, and that colour.

    Args:
        bars: name of a colour -> value, from left to right.
        top: the axis' highest value; lines stand at its fifths.
        size: height and width, pixels.
    """
    canvas = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(canvas)
    left, right, upper, lower = 34, size - 8, 12, size - 14
    font = _font("DejaVuSans", 13)
    for step in range(6):
        y = lower - (lower - upper) * step / 5
        draw.line((left, y, right, y), fill=(205, 205, 205) if step else (0, 0, 0))
        draw.text((left - 4, y), str(top * step // 5), fill="black", font=font, anchor="rm")
    room = (right - left) / len(bars)
    for place, (name, value) in enumerate(bars.items()):
        x = left + room * (place + 0.5)
        draw.rectangle(
            (x - room * 0.32, lower - (lower - upper) * value / top, x + room * 0.32, lower), fill=COLOURS[name]
        )
    return canvas


@lru_cache(maxsize=64)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), points)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> Sequence[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
