"""What the readers of published data share: finding files and folders, taking texts out of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpa_lightning.data.readers.row_fields import identity_of
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import Turn, messages_of
from hpa_lightning.data.record import Record
from hpa_lightning.values import names, shown


def conversation(
    identity: object, prompt: str, images: Sequence[Any] = (), response: str | None = None, where: str = ""
) -> Record:
    """Return the record of one prompt with its images in front, and of the response if there is one.

    Raises:
        ValueError: named by ``where``: marks ``<image>`` in the prompt that are not as many as the images.
    """
    turns = [Turn.of_text("user", prompt)]
    if response is not None:
        turns.append(Turn.of_text("assistant", response))
    messages = messages_of(turns, len(images), "front", where)
    return Record(identity_of({"id": identity}, where), messages, tuple(images), source=where)


def categories_of(row: Row, columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Return scheme -> category of a row; an empty cell, or a column that is missing, is none.

    Args:
        row: of a file.
        columns: scheme -> the column that holds its categories.
        where: the row, for messages.

    Raises:
        ValueError: named by ``where``: a cell that is neither a text nor a number.
    """
    found = {}
    for scheme, column in columns.items():
        value = row.get(column)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{where}: {column!r} is {shown(value)}; expected the name of a category.")
        if name := str(value).strip():
            found[scheme] = name
    return found


def check_option(owner: object, name: str, expected: Sequence[str]) -> None:
    """Check that the field ``name`` of ``owner`` has one of the expected values.

    Raises:
        ValueError: what was given and what is expected.
    """
    value = getattr(owner, name)
    if value not in expected:
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; expected one of {', '.join(expected)}.")


def find_file(candidates: Sequence[Path], what: str) -> Path:
    """Return the first of the candidates that is a file.

    Raises:
        ValueError: ``what`` is missing, and where it was looked for.
    """
    return _first([path for path in candidates if path.is_file()], candidates, what)


def find_folder(candidates: Sequence[Path], what: str) -> Path:
    """Return the first of the candidates that is a folder.

    Raises:
        ValueError: ``what`` is missing, and where it was looked for.
    """
    return _first([path for path in candidates if path.is_dir()], candidates, what)


def text_of(row: Row, key: str, where: str) -> str:
    """Return the text under ``key`` without the spaces around it.

    Raises:
        ValueError: named by ``where``: there is no such key, or what is there is no text, or empty.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        found = f"is {shown(value)}" if key in row else f"is missing; the row has {names(sorted(map(str, row)))}"
        raise ValueError(f"{where}: {key!r} {found}; expected a text.")
    return value.strip()


def image_path(folder: Path, row: Row, where: str) -> str:
    """Return the path under ``image``, which starts from ``folder``."""
    return str(folder / text_of(row, "image", where))


def _first(found: Sequence[Path], candidates: Sequence[Path], what: str) -> Path:
    if not found:
        raise ValueError(f"there is no {what}; looked for {', '.join(repr(str(path)) for path in candidates)}.")
    return found[0]
