"""Rows of JSON lists and JSON lines on disk: found in one pass, read again one at a time."""

from __future__ import annotations

import codecs
import os
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hpa_lightning.data.readers.json_text import DECODER, JsonText
from hpa_lightning.parsing import not_utf8, parse_json

_BLANK = b" \t\r\n"
_EXPECTED = "; expected one object on every line"


class JsonFile:
    """A JSON list (from its first character on) or JSON lines, of which the places of the rows alone are in memory.

    :meth:`rows` goes through the file once and notes where each row is, 8 bytes a row; then rows are read by their
    index, in threads, in forked and in started processes too.

    Args:
        path: a file in UTF-8, with a byte-order mark or without.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        self._empty = array("Q")  # of each empty line the index of the row that follows it
        self._stamp = self._descriptor().stamp()
        self._bom = len(codecs.BOM_UTF8) if self._bytes(0, 3) == codecs.BOM_UTF8 else 0
        self.is_list = self._first_character() == b"["

    def __len__(self) -> int:
        """Rows that were found so far."""
        return max(len(self._starts) - 1, 0)

    @property
    def place(self) -> int:
        """The byte at which the row that was found last starts."""
        return self._starts[-1] if self._starts else 0

    def rows(self, parsed: Callable[[int], bool] = lambda index: True) -> Iterator[tuple[int, Any]]:
        """Find every row, and yield its index and its value.

        Args:
            parsed: given a row's index, whether it is parsed; of another the text is yielded, as bytes (of a list,
                whose rows cannot be distinguished unparsed, the bytes of the value).

        Raises:
            ValueError: named by file and line: not UTF-8, or a list that is broken. A broken line is yielded, as its
                error.
        """
        self._starts, self._empty = array("Q"), array("Q")
        with self.path.open("rb") as file:
            self._require_unchanged()
            file.seek(self._bom)
            yield from self._elements(file, parsed) if self.is_list else self._lines(file, parsed)

    def where(self, index: int) -> str:
        """Where a row is, for messages: file, index, and line in JSON lines."""
        line = "" if self.is_list else f" (line {index + 1 + bisect_right(self._empty, index)})"
        return f"{self.path.name}[{index}]{line}"

    def __getitem__(self, index: int) -> Any:
        """Read a row.

        Raises:
            ValueError: named by file, index and line: broken JSON, not UTF-8, or the file was changed.
        """
        found = self._slice(index)
        if self.is_list:
            return DECODER.raw_decode(found.decode())[0]
        return parse_json(self._decoded(found, self._starts[index]), self.where(index), _EXPECTED)

    def row_bytes(self, index: int) -> bytes:
        """Read the text of a row.

        Raises:
            ValueError: the file was changed.
        """
        found = self._slice(index)
        if not self.is_list:
            return found
        text = found.decode()
        return text[: DECODER.raw_decode(text)[1]].encode()

    def _slice(self, index: int) -> bytes:
        """The line of a row, or a list from a row to the next one."""
        self._require_unchanged()
        start, end = self._starts[index], self._starts[index + 1]
        found = self._descriptor().read(start, end - start)
        return found if self.is_list else found.splitlines()[0]

    def _lines(self, file: BinaryIO, parsed: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
        place, index = self._bom, 0
        for several in file:
            for line in several.splitlines(keepends=True):  # lines may end with \r, too
                start, place = place, place + len(line)
                if not line.strip():
                    self._empty.append(index)
                    continue
                self._starts.append(start)
                if parsed(index):
                    text = self._decoded(line, start)
                    try:
                        value = parse_json(text, self.where(index), _EXPECTED)
                    except ValueError as error:
                        value = error
                    yield index, value
                else:
                    yield index, line.rstrip(b"\r\n")
                index += 1
        self._starts.append(place)

    def _decoded(self, line: bytes, start: int) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.path.name, start + error.start) from error

    def _elements(self, file: BinaryIO, parsed: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
        text = JsonText(file, self.path.name, self._bom)
        text.take("[")
        index = 0
        while not (index == 0 and text.next() == "]"):
            text.next()
            self._starts.append(text.place)
            value = text.value()
            yield index, value if parsed(index) else text.last
            index += 1
            if text.next() != ",":
                break
            text.take(",")
        self._starts.append(text.place)
        text.take("]")
        if text.next():
            raise text.broken("Extra data")

    def _first_character(self) -> bytes:
        place = self._bom
        while found := self._bytes(place, 4096):
            if rest := found.lstrip(_BLANK):
                return rest[:1]
            place += len(found)
        return b""

    # -- the open file ---------------------------------------------------------------------------------------------

    def _descriptor(self) -> _Descriptor:
        found = _OPEN.get(self)
        if found is None:
            found = _Descriptor(self.path)
            for oldest in list(_OPEN)[: len(_OPEN) + 1 - _MOST_OPEN]:
                _OPEN.pop(oldest, None)  # closed as soon as no thread reads from it
            _OPEN[self] = found
        return found

    def _bytes(self, start: int, size: int) -> bytes:
        return self._descriptor().read(start, size)

    def _require_unchanged(self) -> None:
        if self._descriptor().stamp() != self._stamp:
            raise ValueError(
                f"{self.path} was changed while it is in use: its records are read when they are needed, and their "
                "positions have changed. Start again with the file as it is now, and edit copies of files in use."
            )


class _Descriptor:
    """A file that is open for reading."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, start: int, size: int) -> bytes:
        found = _read_at(self._number, size, start)
        while 0 < len(found) < size and (more := _read_at(self._number, size - len(found), start + len(found))):
            found += more
        return found

    def stamp(self) -> tuple[int, int, int]:
        """Which file it is, how long, and when it was written last."""
        found = os.fstat(self._number)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    """Read without a position in the file, which threads and forked processes would share."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows, where nothing is forked
    return os.read(descriptor, size)


_MOST_OPEN = 64
_OPEN: weakref.WeakKeyDictionary[JsonFile, _Descriptor] = weakref.WeakKeyDictionary()
"""The files of this process that were opened last; a stream may have hundreds."""
