"""Text and JSON files, with one documented error for whatever can be wrong with them."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from hpa_lightning.values import shown


def read_text(path: str | PathLike[str]) -> str:
    """Return the text of a UTF-8 file, without a byte-order mark.

    Raises:
        ValueError: named by the file: it is not UTF-8.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path.name, error.start) from error


def not_utf8(name: str, byte: int) -> ValueError:
    """Say that the file ``name`` holds something else than UTF-8 at a byte."""
    return ValueError(f"{name} is not UTF-8 (byte {byte}); expected text in UTF-8.")


class RepeatedKeyError(ValueError):
    """An object of a JSON text has one key twice."""


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values (``object_pairs_hook``); Python's decoder would lose all but the last.

    Raises:
        RepeatedKeyError: a key occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RepeatedKeyError(f"an object has the key {shown(twice)} twice, and one of its values would be lost")
    return found


def parse_json(text: str | bytes, where: str, expected: str = "") -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text.
        where: file, or file and line, for messages.
        expected: what to say more.

    Raises:
        ValueError: named by ``where``: broken JSON, a key twice in one object, nested too deeply, not UTF-8, or a
            number of thousands of digits.

    >>> parse_json("[1, 2", "a.json")
    Traceback (most recent call last):
    ValueError: a.json: broken JSON at line 1: Expecting ',' delimiter.
    """
    try:
        return json.loads(text, object_pairs_hook=distinct_keys)
    except (RecursionError, ValueError) as error:
        raise broken_json(error, where, expected) from error


def broken_json(error: Exception, where: str, expected: str = "") -> ValueError:
    """Say what ``error``, which the JSON decoder raised, found broken; arguments as those of :func:`parse_json`."""
    if isinstance(error, json.JSONDecodeError):
        place = "" if "(line" in where or ", line" in where else f" at line {error.lineno}"
        return ValueError(f"{where}: broken JSON{place}: {error.msg}{expected}.")
    if isinstance(error, RecursionError):
        return ValueError(f"{where}: broken JSON: it is nested too deeply to be read{expected}.")
    if isinstance(error, RepeatedKeyError):
        return ValueError(f"{where}: {error}.")
    return ValueError(f"{where}: broken JSON: {str(error)[:100]}{expected}.")  # bytes, or a number of 5000 digits


def json_object(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: named by the path: broken JSON, or something else than an object.
        OSError: it cannot be read.
    """
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected an object.")
    return value
