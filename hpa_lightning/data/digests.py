"""Digests of records: whether the data of a resumed fit are those that it was started with."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from hpa_lightning.data.images import EncodedImage, to_rgb
from hpa_lightning.data.record import Record

_OF_PICTURES = ", pictures "
_PIECE = 4096
"""Bytes that are read at the beginning, in the middle and at the end of a sampled image file."""
_REMEMBERED = 1 << 14
"""Image files whose sizes are remembered; several records may show one."""


class RecordsDigest:
    """A digest of records that are given one after the other; it holds none of them, and little else.

    See :func:`records_digest`. Paths of images wait for the folder that all share, in a temporary file from 1 MB on.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self._count = 0
        self._unparsed = 0
        self._images = 0
        self._pictures = hashlib.blake2b(digest_size=4)
        self._shared: str | None = None
        self._paths: list[IO[bytes]] = []
        self._sizes = lru_cache(_REMEMBERED)(_size)

    def add(self, record: Record) -> None:
        """Tell the next record."""
        turns = [[message["role"], message["content"], message.get("loss", True)] for message in record.messages]
        # Without a group or a rejected answer the digest is that of earlier versions.
        grouped = [record.group] if record.group else []
        paired = [{"rejected": record.rejected}] if record.rejected else []
        content = [turns, record.answers, record.choices, *grouped, *paired]
        self._digest.update(json.dumps(content, default=str, sort_keys=True).encode())
        for image in record.images:
            if isinstance(image, str | Path):
                self._add_path(os.path.abspath(image))
            else:
                self._digest.update(_image_digest(image))
        self._digest.update(b"\n%d" % len(record.images))
        self._count += 1

    def add_bytes(self, row: bytes) -> None:
        """Add a record as it is in its file, unparsed."""
        self._digest.update(b"\n%d bytes\n" % len(row))
        self._digest.update(row)
        self._unparsed += 1

    def extended(self, records: Iterable[Record]) -> str:
        """Return the text for these records and ``records`` behind them, with the same folder of images."""
        longer = RecordsDigest()
        longer._digest, longer._count, longer._unparsed = self._digest.copy(), self._count, self._unparsed
        longer._shared, longer._paths = self._shared, [*self._paths, _spool()]
        longer._images, longer._pictures = self._images, self._pictures.copy()
        for record in records:
            longer.add(record)
        return longer.text()

    def text(self) -> str:
        """Return the digest in words."""
        digest, start = self._digest.copy(), len(self._shared or "")
        for file in self._paths:
            file.seek(0)
            for line in file:
                path, size = json.loads(line)
                digest.update(f"{path[start:]}\0{size}\n".encode("utf-8", "surrogatepass"))
        said = f"{self._count + self._unparsed} records, {digest.hexdigest()}"
        said += f", {self._unparsed} of them by their bytes" if self._unparsed else ""
        return said + (f"{_OF_PICTURES}{self._pictures.hexdigest()}" if self._images else "")

    def _add_path(self, path: str) -> None:
        folder = os.path.dirname(path)
        if self._shared is None:
            self._shared = folder
        elif folder != self._shared and not folder.startswith(self._shared.rstrip(os.sep) + os.sep):
            self._shared = os.path.commonpath([self._shared, folder])
        if not self._paths:
            self._paths.append(_spool())
        self._paths[-1].write(json.dumps([path, self._sizes(path)]).encode() + b"\n")
        if _is_sampled(self._images):
            self._pictures.update(_pieces(path))
        self._images += 1


def records_digest(records: Iterable[Record]) -> str:
    """Say how many records there are, with a digest of all that trains, calibrates or scores, in their order.

    Texts, references and choices count by their content, encoded images by their bytes, other images in memory by their
    pixels. Image files count by their path below the folder that all of them share, so that a dataset may be moved, and
    by their size; of the first 256, and of ever fewer behind them (about 1,800 of a million), 4 KiB at the beginning,
    in the middle and at the end are read too. Ids and the names of files do not count, nor do times: copies get new
    ones.

    Args:
        records: a million short ones take about ten seconds.

    Returns:
        For example ``"12 records, 3f9a01c2b4d5e6f7"``; with image files ``"12 records, 3f9a01c2b4d5e6f7, pictures
        9c27e4d1"``.
    """
    return RecordsDigest().extended(records)


def same_records(one: str, other: str) -> bool:
    """Whether two digests are of the same records; one of version 0.1 says nothing of the content of pictures.

    >>> same_records("1 records, 3f", "1 records, 3f, pictures 9c"), same_records("1 records, 3f", "1 records, 4a")
    (True, False)
    """
    if (_OF_PICTURES in one) != (_OF_PICTURES in other):
        one, other = one.partition(_OF_PICTURES)[0], other.partition(_OF_PICTURES)[0]
    return one == other


def file_digest(path: str | os.PathLike[str]) -> str:
    """Say how many bytes a file has, with a digest of them."""
    digest, size = hashlib.blake2b(digest_size=8), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return f"a file of {size} bytes, {digest.hexdigest()}"


def folder_digest(path: str | os.PathLike[str]) -> str:
    """Say how many files a folder has, with a digest of their names and sizes, and of pieces of each.

    Of a file 4 KiB at the beginning, in the middle and at the end are read: enough to distinguish models.
    """
    digest, count = hashlib.blake2b(digest_size=8), 0
    for file in sorted(Path(path).rglob("*")):
        if file.is_file():
            name = file.relative_to(path).as_posix()
            digest.update(f"{name}\0{_size(str(file))}\n".encode("utf-8", "surrogatepass") + _pieces(str(file)))
            count += 1
    return f"a folder of {count} files, {digest.hexdigest()}"


def array_digest(array: np.ndarray) -> str:
    """Type, shape and a digest of the values.

    >>> array_digest(np.zeros((2, 3), np.uint8)).split(", ")[0]
    'uint8 2x3'
    """
    values = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=8)
    return f"{array.dtype} {'x'.join(map(str, array.shape))}, {values.hexdigest()}"


def _spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=1 << 20)


def _size(path: str) -> str:
    try:
        return str(os.stat(path).st_size)
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return "missing"


def _is_sampled(number: int) -> bool:
    """Whether the content of the ``number``-th image file counts: 128 of every doubling.

    >>> [sum(map(_is_sampled, range(count))) for count in (256, 512, 1024, 10_000)]
    [256, 384, 512, 925]
    """
    return number % (1 << max(0, number.bit_length() - 8)) == 0


def _pieces(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in (0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except (OSError, ValueError):
        return b"missing"
    return digest.digest()


def _image_digest(image: Any) -> bytes:
    if isinstance(image, EncodedImage):
        return hashlib.blake2b(image.data).digest()
    array = np.asarray(to_rgb(image) if isinstance(image, Image.Image) else image)
    return array_digest(array).encode()
