"""Pictures as people see them: decoded, turned upright, scaled to 8 bits, laid on white."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image

from hpa_lightning.values import shown

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

_PROGRAMS = frozenset({"EPS"})
"""Formats that PIL hands to another program, Ghostscript, which runs what a data file says."""

_BARE = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{100,}={0,2}\s*\Z")
"""PNG, JPEG, GIF or WebP in base64 without an address around it: no path is so long without a dot."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image (JPEG, PNG, ...) in memory, decoded again at every opening.

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
        ValueError: no image, a broken one, one that is too large, or PostScript.
    """
    try:
        with Image.open(file) as opened:
            if opened.format in _PROGRAMS:
                raise ValueError(f"{opened.format} is no picture but a program that draws one, and none is run here")
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
        image = image.convert("LA") if image.mode == "La" else image  # PIL knows no other way from there
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


def image_of_cell(cell: Any, folder: Path, where: str) -> str | EncodedImage | Image.Image:
    """Return the image in a cell of a data file.

    Args:
        cell: a path; PNG, JPEG, GIF or WebP in base64; an address: ``data:`` with base64, ``file://``, or
            ``http(s)://`` of a file that is there already (nothing is downloaded), in ``folder`` under its host and
            path, as ``wget -x`` writes it, its path, or its name; the bytes of an image file; the hub's
            ``{"bytes", "path"}``, of which ``bytes`` are taken where there are any; a PIL image.
        folder: that relative paths start from.
        where: the row, for messages.

    Raises:
        ValueError: named by ``where``: a cell of another kind, an empty one, an address that is not there.
    """
    name = ""
    if isinstance(cell, Mapping):
        path = cell.get("path")
        name = path[:200] if isinstance(path, str) else ""
        cell = cell.get("bytes") or path
    if isinstance(cell, bytes) and cell:
        return EncodedImage(cell, name)
    if isinstance(cell, Image.Image):
        return cell
    if not isinstance(cell, str) or not cell:
        text = cell if isinstance(cell, str) else shown(cell)
        raise ValueError(f"{where}: the image is {text!r}; expected a path, or the bytes of an image file.")
    if cell.startswith("data:"):
        return _inline(cell, where)
    if _BARE.match(cell):
        return _inline(f"data:;base64,{cell}", where)
    scheme = _SCHEME.match(cell)
    if scheme is None:
        return str(folder / cell)
    if scheme[1].lower() == "file":
        return unquote(re.sub(r"^localhost(?=/)", "", cell[scheme.end() :]))
    return _downloaded(cell, folder, where)


def _inline(address: str, where: str) -> EncodedImage:
    """The image in a ``data:`` address."""
    head, _, data = address.partition(",")
    try:
        if not head.endswith(";base64") or not data:
            raise ValueError("it has no ';base64,'")
        return EncodedImage(base64.b64decode("".join(data.split()), validate=True), head[:40])
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"{where}: the image {shown(address)} is not base64: {error}.") from error


def _downloaded(address: str, folder: Path, where: str) -> str:
    """The file of an address that was downloaded before."""
    try:
        parts = urlsplit(address)
        path = unquote(parts.path).lstrip("/")
    except ValueError as error:
        raise ValueError(f"{where}: the image {shown(address)} is not an address: {error}.") from error
    places = [folder / parts.netloc / path, folder / path, folder / Path(path).name]  # the least doubtful first
    found = next((place for place in places if parts.scheme.startswith("http") and is_file(place)), None)
    if found is None:
        raise ValueError(
            f"{where}: the image {shown(address)} is an address, and nothing is downloaded here. Download it to "
            f"{shown(str(places[-1]))}, or write the path of a local file."
        )
    return str(found)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a file; a path that no file can have (too long, say) is none."""
    return os.path.isfile(path)  # Path.is_file raises for some of them


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    try:
        found: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found
    except Exception:  # a broken EXIF block tells nothing, and the pixels do not need it
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale to 8 bits, and lay what is transparent on white."""
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
    grey = np.rint(scaled).astype(np.uint8)
    clear = image.info.get("transparency")  # of a grey PNG the one value that is transparent
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)
