"""Questions of multiple choice, to be answered by the likelihood of each choice."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.published_files import conversation, find_file, text_of
from hpa_lightning.data.readers.table_files import json_rows
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import shown


@dataclass(frozen=True)
class MultipleChoice(RecordSet):
    """Rows of a question, its choices and the right one, such as those of Ch3Ef (Shi et al., arXiv 2403.17830).

    The prompt is the question alone. The choices are in ``Record.choices``, and ``answers`` holds the text of the
    right one.

    Args:
        file: a JSON list, JSON lines, or an object with the list under ``items`` (Ch3Ef). A row has ``question`` (or
            ``query``), ``options`` or ``choices`` (a list of texts, or letter -> text), ``answer`` (see
            :func:`right_choice`), and it may have ``id`` and ``image``, a path or a list of paths.
        image_folder: folder that image paths start from; the file's own folder when ``None``.
        first_is_right: the first choice is the right one and there is no ``answer``, as in Ch3Ef.

    Raises:
        ValueError: when read: a missing file, a broken row, an answer that is none of the choices.
    """

    file: str
    image_folder: str | None = None
    first_is_right: bool = False

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        path = find_file([Path(self.file)], "file of multiple choice")
        folder = path.parent if self.image_folder is None else Path(self.image_folder)
        return [self._record(row, folder, where) for where, row in _rows(path)]

    def _record(self, row: Any, folder: Path, where: str) -> Record:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
        options = row.get("options", row.get("choices"))
        answer = row.get("answer")
        if self.first_is_right:
            if answer is not None:
                raise ValueError(f"{where}: the answer is {shown(answer)}; with first_is_right=True expected none.")
            answer = next(iter(options), None) if isinstance(options, Mapping) else 0
        prompt = text_of(row, "query" if "query" in row and "question" not in row else "question", where)
        images = row.get("image") or []
        cells = images if isinstance(images, list) else [images]
        record = conversation(
            row.get("id", where), prompt, [image_of_cell(cell, folder, where) for cell in cells], where=where
        )
        return with_choices(record, options, answer)


def with_choices(record: Record, options: Any, answer: Any) -> Record:
    """Return the record with the texts of the options as ``choices`` and the right one in ``answers``.

    Raises:
        ValueError: named by the record's source: options that are no texts, an answer that is none of them.
    """
    choices, right = right_choice(options, answer, record.where)
    return replace(record, choices=choices, answers=(right,))


def right_choice(options: Any, answer: Any, where: str) -> tuple[tuple[str, ...], str]:
    """Return the texts of the options, without spaces around them, and the text of the right one.

    Args:
        options: a list of texts, or a mapping: letter -> text.
        answer: an index from 0 on, a letter (of the mapping; ``A`` is the first of a list), or the text itself.
        where: the row, for messages.

    Raises:
        ValueError: named by ``where``: fewer than two options or an empty one, an answer that is none of them, or
            one that names two different options, as a letter and as a text.

    >>> right_choice(["a cat", "a dog"], "B", "row 1")
    (('a cat', 'a dog'), 'a dog')
    """
    texts = list(options.values()) if isinstance(options, Mapping) else options
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(x, str) and x.strip() for x in texts):
        raise ValueError(f"{where}: the options are {shown(options)}; expected two or more texts.")
    choices = tuple(text.strip() for text in texts)
    letters = list(options) if isinstance(options, Mapping) else list(string.ascii_uppercase[: len(choices)])
    found = set()
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        found.add(choices[answer])
    elif isinstance(answer, str):
        found |= {choices[letters.index(answer.strip())]} if answer.strip() in letters else set()
        found |= {answer.strip()} & set(choices)
    if len(found) != 1:
        raise ValueError(
            f"{where}: the answer {shown(answer)} is {'two' if found else 'none'} of the options {shown(options)}; "
            "expected an index from 0 on, a letter or a text."
        )
    return choices, found.pop()


def _rows(path: Path) -> list[tuple[str, Any]]:
    if path.suffix.lower() == ".json" and read_text(path).lstrip()[:1] == "{":
        items = parse_json(read_text(path), path.name).get("items")
        if not isinstance(items, list):
            raise ValueError(f"{path.name} holds an object without a list `items`; expected one, or a list of rows.")
        return [(f"{path.name}.items[{index}]", row) for index, row in enumerate(items)]
    return list(json_rows(path))
