"""One JSON value after another out of a text that is read a part at a time."""

from __future__ import annotations

import codecs
import json
from typing import Any, BinaryIO

from hpa_lightning.parsing import broken_json, distinct_keys, not_utf8

_CHUNK = 1 << 20
_MARGIN = 64
"""Characters within which a value that is cut off can be told from a broken one by nothing but what follows."""

DECODER = json.JSONDecoder(object_pairs_hook=distinct_keys)


class JsonText:
    """The part of a JSON text that is being read.

    Args:
        file: where it is.
        name: of the file, for messages.
        place: of the first byte.

    Attributes:
        place: of the next character, in bytes.
        last: the bytes of the last value.
    """

    def __init__(self, file: BinaryIO, name: str, place: int) -> None:
        self._file = file
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._line = 1
        self._read = place
        self._ended = False
        self.place = place
        self.last = b""

    def next(self) -> str:
        """Go over white space and return the character that follows; an empty text at the end."""
        while True:
            end = json.decoder.WHITESPACE.match(self._text, self._at).end()  # type: ignore[attr-defined]
            self._pass(end)
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Go over a character.

        Raises:
            ValueError: another one is there.
        """
        if self.next() != character:
            raise self.broken("Expecting ',' delimiter")
        self._pass(self._at + 1)

    def value(self) -> Any:
        """Read the value that is here; ``next`` has gone to its start."""
        while True:
            try:
                found, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _MARGIN
                if not is_cut or not self._more():
                    self._pass(error.pos)
                    raise self.broken(error.msg) from error
            except (RecursionError, ValueError) as error:
                raise broken_json(error, f"{self._name}, line {self._line}") from error
            else:
                if len(self._text) - end > 2 or not self._more():  # "1" may go on as "1.5" or "1e+5"
                    self.last = self._pass(end)
                    return found

    def broken(self, problem: str) -> ValueError:
        """What is wrong, with the line."""
        return ValueError(f"{self._name}: broken JSON at line {self._line}: {problem}.")

    def _pass(self, end: int) -> bytes:
        passed = self._text[self._at : end]
        self._line += passed.count("\n")
        as_bytes = passed.encode("utf-8", "surrogatepass")
        self.place += len(as_bytes)
        self._at = end
        return as_bytes

    def _more(self) -> bool:
        """Read on, twice as much where a value is long; whether there was anything."""
        rest = self._text[self._at :]
        while not self._ended:
            found = self._file.read(max(_CHUNK, len(rest)))
            self._ended = not found
            try:
                text = self._decoder.decode(found, final=self._ended)
            except UnicodeDecodeError as error:
                byte = self._read - len(self._decoder.getstate()[0]) + error.start
                raise not_utf8(self._name, byte) from error
            self._read += len(found)
            if text:
                self._text, self._at = rest + text, 0
                return True
        return False
