"""MMBench: questions about pictures with up to four options, each asked with its options rotated."""

from __future__ import annotations

import base64
import string
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.helpfulness.asking import ASKINGS, INSTRUCTION, Asking, question_record
from hpa_lightning.data.images import EncodedImage, image_of_cell
from hpa_lightning.data.published_files import categories_of, check_option, find_file, text_of
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.readers.table_files import Row, read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.values import names, shown

ROUND = 1_000_000
"""Rotation ``k`` of the question ``i`` has the index ``k * ROUND + i``."""

_LETTERS = string.ascii_uppercase
_NONE = "none"
_EMPTY = ("", "nan")
_NOTHING = (*_EMPTY, _NONE)  # as pandas and LLaVA's script read a cell
_LONGEST_REFERENCE = 64  # characters; a longer image cell is a picture


@dataclass(frozen=True)
class MMBench(RecordSet):
    """The questions of MMBench (Liu et al., ECCV 2024, arXiv 2307.06281), to be scored by circular evaluation.

    A question is asked once for each of its options, which are rotated, and counts if all its rows are right
    (``circular_accuracy``, or ``circular_choice_accuracy`` by likelihood). The rows of one question are one
    :attr:`Record.group`. Files of the same layout (CCBench, MMBench in other languages) are read too.

    Args:
        file: upstream's TSV (``index``, ``question``, ``hint``, ``A`` to ``D``, ``answer``, ``category``,
            ``l2-category``, ``split``, ``image`` in base64 or the index of the row that has it), or the hub's parquet
            file. Test files have no answers and cannot be scored here.
        rounds: ``"file"``: the rotations that the file has; ``"made"``: they are made of the first rows, as LLaVA's
            script does; ``"first"``: the first rows alone, for ``option_accuracy`` (VanillaEval).
        ask: see :data:`~hpa_lightning.data.helpfulness.asking.Asking`.
        instruction: the prompt's last line; ``""`` for none.

    Raises:
        ValueError: an unknown option; when read: a missing file, a broken row, a row without an answer, rotations that
            are asked for and that the file does not have.
    """

    file: str
    rounds: Literal["file", "made", "first"] = "file"
    ask: Asking = "letter"
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        check_option(self, "rounds", ("file", "made", "first"))
        check_option(self, "ask", ASKINGS)

    def read(self) -> list[Record]:
        """Read the records, in the order of the file; made rotations stand behind their first row."""
        path = find_file([Path(self.file)], "MMBench file")
        nothing = _what_is_nothing(path)
        images: dict[int, Any] = {}
        records: list[Record] = []
        for where, row in read_table(path):
            index = _index(row, where)
            images[index] = _image(row.get("image"), images, where)
            if index < ROUND or self.rounds == "file":
                records += self._rotations(index, row, images[index], nothing, where)
        if self.rounds == "file":
            _check_rounds(records, path.name)
        return records

    def _rotations(self, index: int, row: Row, image: Any, nothing: Collection[str], where: str) -> Iterator[Record]:
        options = _options(row, nothing, where)
        answer = row.get("answer")
        if not isinstance(answer, str) or answer.strip() not in _LETTERS[: len(options)] or not answer.strip():
            raise ValueError(
                f"{where}: the answer is {shown(answer)}; expected the letter of one of the {len(options)} options. "
                "Test files have no answers: their predictions are scored by the benchmark's own server."
            )
        right = _LETTERS.index(answer.strip())
        hint = row.get("hint")
        question = text_of(row, "question", where)
        if isinstance(hint, str) and not _is_nothing(hint):
            question = f"{hint.strip()}\n{question}"
        level = next((column for column in row if column.lower() == "l2-category"), "l2-category")
        schemes = {"category": "category", "l2-category": level, "split": "split"}
        categories = {k: v for k, v in categories_of(row, schemes, where).items() if not _is_nothing(v)}
        for turn in range(len(options) if self.rounds == "made" else 1):
            identity = str(index + turn * ROUND)
            turned = options[turn:] + options[:turn]
            record = question_record(
                identity, question, turned, (right - turn) % len(options), [image], self.ask, self.instruction, where
            )
            yield replace(record, group=str(index % ROUND), categories=categories)


def _index(row: Row, where: str) -> int:
    value = row.get("index")
    try:
        index = int(str(value))
    except ValueError:
        index = -1
    if index < 0:
        raise ValueError(f"{where}: the index is {shown(value)}; expected a whole number from 0 on.")
    return index


def _what_is_nothing(path: Path) -> tuple[str, ...]:
    """The cells, in lower case, by which a file says that there is no such option.

    Decision: "None" may be an option ("How many dogs are there?") or what a program has written for an empty cell. A
    file in which a row has it twice means the latter. Else it is an option where it is the right one in some row, or
    stands before another option; and where nothing tells, it is no option, with a warning.
    """
    doubtful, is_option = 0, False
    for _, row in read_table(path):
        cells = {letter: str(row.get(letter) or "").strip() for letter in _LETTERS}
        found = [letter for letter, text in cells.items() if text.lower() == _NONE]
        if len(found) > 1:
            return _NOTHING
        for one in found:
            doubtful += 1
            behind = (text for letter, text in cells.items() if letter > one)
            is_option |= row.get("answer") == one or not all(map(_is_nothing, behind))
    if is_option:
        return _EMPTY
    if doubtful:
        rank_zero_warn(
            f"{path.name}: {doubtful} cells of options say None and are read as no option: none of them is the right "
            "one or stands before another. If it is an option, write it in another way.",
            category=DataWarning,
        )
    return _NOTHING


def _options(row: Row, nothing: Collection[str], where: str) -> list[str]:
    """The texts of the options, up to the first that the row does not have."""
    options = []
    for letter in _LETTERS:
        value = row.get(letter)
        text = "" if value is None else str(value).strip()
        if text.lower() in nothing and not (text and row.get("answer") == letter):
            break
        options.append(text)
    behind = ((letter, str(row.get(letter) or "").strip().lower()) for letter in _LETTERS[len(options) + 1 :])
    rest = [letter for letter, text in behind if text not in nothing]
    if len(options) < 2 or rest:
        found = f"{len(options)} options" + (f", and {names(rest)} behind a gap" if rest else "")
        raise ValueError(f"{where}: {found}; expected two or more under A, B, ...")
    return options


def _is_nothing(text: str) -> bool:
    return text.strip().lower() in _NOTHING


def _image(cell: Any, images: Mapping[int, Any], where: str) -> Any:
    """The picture of a row: its own, or that of the earlier row that the cell names by its index."""
    if isinstance(cell, str) and len(cell) <= _LONGEST_REFERENCE and cell.strip().isdigit():
        if int(cell) not in images:
            raise ValueError(f"{where}: the image is that of row {cell.strip()}, which does not come before it.")
        return images[int(cell)]
    if isinstance(cell, str) and cell:
        try:
            return EncodedImage(base64.b64decode(cell, validate=True), where)
        except ValueError as error:
            raise ValueError(f"{where}: the image is not base64: {error}.") from error
    return image_of_cell(cell, Path(), where)


def _check_rounds(records: list[Record], name: str) -> None:
    """Tell of questions that the file does not ask once for each of their options."""
    rows = Counter(record.group for record in records)
    if records and max(rows.values()) == 1:
        raise ValueError(
            f"{name} has no rotated questions (an index from {ROUND} on); pass rounds='made' to make them, or "
            "rounds='first' to ask every question once."
        )
    short = [record for record in records if record.id == record.group and rows[record.group] < len(record.choices)]
    lone = sorted(set(rows) - {record.id for record in records})
    if lone:
        raise ValueError(f"{name} has rotations of the questions {names(lone)}, but not their first rows.")
    if short:
        first = short[0]
        rank_zero_warn(
            f"{name}: {len(short)} of {len(rows)} questions have fewer rows than options, the first is {first.where} "
            f"({rows[first.group]} of {len(first.choices)}); circular evaluation is easier on them.",
            category=DataWarning,
        )
