"""What the readers of preference pairs share: rows that are no pairs are counted by what is wrong, and told at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.readers.table_files import Row, read_table
from hpa_lightning.data.record import Record, check_pair, message_text
from hpa_lightning.values import shown

Faulty = Literal["stop", "skip"]

MISSING = "without two answers"
SAME = "with twice the same answer"
TIE = "with a tie instead of a label"
CONTRADICTION = "whose labels contradict each other"

_EXAMPLES = 3


class PairFault(ValueError):
    """Why a row is no pair.

    Args:
        kind: what it is counted under.
        message: with the row's name.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def files_of(pattern: str, what: str) -> list[Path]:
    """Return a file, or the files that fit a pattern, in the order of their names.

    Raises:
        ValueError: there is none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    paths = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not paths:
        raise ValueError(f"there is no {what} {pattern!r}; expected a file, or a pattern that fits some.")
    return paths


def answer_of(row: Row, key: str, where: str) -> str:
    """Return an answer of a pair.

    Raises:
        PairFault: there is none, or it is no text or empty.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        found = f"is {shown(value)}" if key in row else "is missing"
        raise PairFault(MISSING, f"{where}: {key!r} {found}; expected a text.")
    return value.strip()


def read_pairs(
    files: Iterable[Path], record_of: Callable[[Row, Path, int, str], tuple[Record | None, str | None]], faulty: Faulty
) -> list[Record]:
    """Read the pairs of some files, and report the rows that are none, and what is doubtful, with their numbers.

    Args:
        files: tables.
        record_of: row, its file, its index in it, its name for messages -> the pair, or ``None`` for one that is left
            out as asked; and what is doubtful about the row, in words that follow a number.
        faulty: ``"stop"``: rows that are no pairs are an error. ``"skip"``: they are left out, with a warning.

    Raises:
        ValueError: rows that are no pairs, with counts by what is wrong; another broken row; no pair is left.
    """
    found: list[Record] = []
    faults: dict[str, list[str]] = {}
    doubts: dict[str, int] = {}
    rows, names = 0, []
    for path in files:
        names.append(path.name)
        for index, (where, row) in enumerate(read_table(path)):
            rows += 1
            try:
                record, doubt = record_of(row, path, index, where)
                if doubt is not None:
                    doubts[doubt] = doubts.get(doubt, 0) + 1
                if record is not None:
                    _check(record)
                    found.append(record)
            except PairFault as fault:
                faults.setdefault(fault.kind, []).append(str(fault))
    what = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files"
    if doubts:
        reported = "; ".join(f"{count} of {rows} pairs {doubt}" for doubt, count in doubts.items())
        warnings.warn(f"{what}: {reported}.", DataWarning, stacklevel=2)
    if faults:
        reported = "".join(_reported(kind, examples) for kind, examples in faults.items())
        text = f"{what}: {sum(map(len, faults.values()))} of {rows} rows cannot be learnt from as pairs:{reported}"
        if faulty == "stop":
            raise ValueError(f"{text}\nCorrect them, or leave them out with faulty: skip.")
        warnings.warn(f"{text}\nThey are left out.", DataWarning, stacklevel=2)
    if not found:
        raise ValueError(f"{what} holds no pair that can be used, of {rows} rows.")
    return found


def _check(record: Record) -> None:
    if message_text(record.messages[-1]).split() == record.rejected.split():
        raise PairFault(SAME, f"{record.where}: both answers are {shown(record.rejected)}.")
    check_pair(record)


def _reported(kind: str, examples: list[str]) -> str:
    more = [f"\n  - and {len(examples) - _EXAMPLES} more"] if len(examples) > _EXAMPLES else []
    return f"\n{len(examples)} {kind}" + "".join([f"\n  - {one}" for one in examples[:_EXAMPLES]] + more)


def images_of(row: Row, folder: Path, where: str) -> tuple[Any, ...]:
    """Return the images under ``image`` (one) or ``images`` (a list), in order."""
    given = row.get("images", row.get("image"))
    if given is None or given == "":
        return ()
    return tuple(image_of_cell(cell, folder, where) for cell in (given if isinstance(given, list) else [given]))
