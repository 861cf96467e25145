"""Image files that came inside a data file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


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

    def decode(self) -> Image.Image:
        """Return the image in RGB.

        Raises:
            OSError, SyntaxError, ValueError: the bytes are no image, or a broken one.
        """
        with Image.open(io.BytesIO(self.data)) as opened:
            return opened.convert("RGB")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the pixels, uint8 ``(height, width, 3)``."""
        return np.asarray(self.decode(), dtype=dtype)


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
