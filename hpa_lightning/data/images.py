"""Pictures as people see them: decoded, turned upright, scaled to 8 bits, laid on white."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

#: Larger images are refused before they are decoded: PIL warns of them, and refuses twice as many pixels.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485

#: What is done to pictures of a kind beyond taking their red, green and blue; named by `data check`.
DEEP, TRANSPARENT, TURNED, FRAMES = KINDS = (
    "of 16 bits or float, scaled to 8 bits",
    "with transparency, laid on white",
    "turned by their EXIF orientation",
    "of several frames, of which the first counts",
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright."""


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image (JPEG, PNG, ...) in memory, decoded anew at every opening.

    It takes as much memory as the image file. A PIL image keeps its pixels once they are loaded, which for photographs
    are ten times as much and more; after an epoch all of them would be in memory.

    Args:
        data: the bytes of the image file.
        name: what messages call it.
    """

    data: bytes = field(repr=False)
    name: str = ""

    def decode(self, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
        """Return the image in RGB, see :func:`read_rgb`.

        Raises:
            ValueError: the bytes are no image, a broken or a too large one.
        """
        return read_rgb(io.BytesIO(self.data), max_pixels)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the pixels, uint8 ``(height, width, 3)``."""
        return np.asarray(self.decode(), dtype=dtype)


def read_rgb(file: str | Path | io.BytesIO, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Decode an image file; see :func:`to_rgb`.

    Args:
        file: path, or what can be read.
        max_pixels: a larger image is refused before its pixels are decoded; ``None``: none is. Above twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` that has to be raised too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no image, a broken one, or one that is too large.
    """
    try:
        with Image.open(file) as opened:
            width, height = opened.size
            if max_pixels is not None and width * height > max_pixels:
                raise ValueError(too_large(width, height, max_pixels))
            return to_rgb(opened)
    except FileNotFoundError:
        raise
    except Exception as error:  # on broken files PIL raises whatever its decoders do: struct.error, KeyError, ...
        raise ValueError(str(error)[:200] or type(error).__name__) from error


def too_large(width: int, height: int, max_pixels: int) -> str:
    """What is said of an image that has more pixels than are accepted."""
    return (
        f"{width} x {height} pixels are more than max_image_pixels={max_pixels}, and would take "
        f"{width * height * 3 / 1e9:.1f} GB and several times that in the processor; shrink the file, or raise the "
        "limit"
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture that a viewer shows, in RGB.

    As ``transformers.image_utils.load_image`` it is turned upright by its EXIF orientation, of several frames the first
    is taken. Unlike there, transparency is laid on white (not on whatever colour lies below it, often black), and
    values of more than 8 bits are scaled (not clipped): 16-bit integers from [0, 65535]; floats from the first of
    [0, 1], [0, 255], [0, 65535] that holds all of them, else from the picture's own least and greatest value, as
    32-bit integers beyond 16 bits are.

    Raises:
        ValueError: values that are not finite; also what PIL raises for broken files, of many classes.
    """
    image.load()  # some formats tell transparency and orientation behind the pixels
    turn = _TURNS.get(_orientation(image))
    if _is_deep(image):
        image = _eight_bits(image)
    elif _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def kinds_of(image: Image.Image, header_only: bool = False) -> list[str]:
    """Return which of :data:`KINDS` an image is of.

    Args:
        image: as opened.
        header_only: do not decode pixels for the orientation that a PNG file may hold behind them.
    """
    unseen = header_only and image.format == "PNG" and "exif" not in image.info
    found = {
        DEEP: _is_deep(image),
        TRANSPARENT: _is_transparent(image),
        TURNED: not unseen and _orientation(image) in _TURNS,
        FRAMES: getattr(image, "n_frames", 1) > 1,
    }
    return [kind for kind, is_one in found.items() if is_one]


def image_of_cell(cell: Any, folder: Path, where: str) -> str | EncodedImage:
    """Return the image in a cell: a path, the bytes of a file, or the hub's ``{"bytes", "path"}``.

    Args:
        cell: of which ``bytes`` are taken where there are any.
        folder: that relative paths start from.
        where: the row, for messages.

    Raises:
        ValueError: a cell of another kind, or an empty one.
    """
    name = ""
    if isinstance(cell, Mapping):
        name = str(cell.get("path") or "")
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return EncodedImage(cell, name)
    if isinstance(cell, str) and cell:
        return str(folder / cell)
    raise ValueError(f"{where}: the image is {str(cell)[:60]!r}; expected a path, or the bytes of an image file.")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a file; a path that no file can have (too long, say) is none."""
    return os.path.isfile(path)  # Path.is_file raises for some of them


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block tells nothing, and the pixels do not need it
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64 if image.mode in ("I", "F") else np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    least, greatest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    high = next((limit for limit in usual if greatest <= limit), None)
    if least < 0 or high is None:
        low, high = float(values.min()), float(values.max())
    else:
        low = 0.0
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
