"""Prompts from a table: SORRY-Bench, WildJailbreak, AdvBench, HarmBench and whatever else has a column of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.published_files import categories_of, conversation, find_file, text_of
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.readers.table_files import Row, read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.values import names, shown

PROMPT_COLUMNS = (
    "prompt",
    "question",
    "instruction",
    "turns",
    "text",
    "goal",
    "behavior",
    "forbidden_prompt",
    "adversarial",
    "vanilla",
)
"""Names of columns, in lower case, that hold prompts."""

_IMAGE_NAME = re.compile(r"image|(?:^|[_\W])(?:img|picture|photo)s?(?:$|[_\W])", re.IGNORECASE)

ID_COLUMNS = ("id", "question_id", "BehaviorID")

Value = str | int | float | bool


@dataclass(frozen=True)
class PromptFile(RecordSet):
    """The prompts of a CSV, TSV, JSON, JSON-lines, parquet or text file (each line of a text file is a prompt).

    The column of the prompts is ``prompt_column``; without it the only column with a name of ``PROMPT_COLUMNS``, or
    the only column. Where ``adversarial`` and ``vanilla`` stand side by side (WildJailbreak, arXiv 2406.18510) it is
    ``adversarial``, and ``vanilla`` in the rows where that is empty. A prompt may be a list of one turn (``turns`` of
    SORRY-Bench, arXiv 2406.14598).

    Whether the prompts are harmful is for the file and ``filters`` to tell.

    Args:
        file: chosen by its suffix.
        prompt_column: see above.
        image_column: column of a path (or of the hub's image); a row without one is text only. Columns that are called
            as images are, and hold something, are warned of where this is ``None``.
        answer_column: column of a response that the record ends with, such as ``completion`` of WildJailbreak.
        filters: column -> the value, or list of values, of the rows to keep; compared as text, whatever the case.
        image_folder: folder that image paths start from; the file's own folder when ``None``.
        category_columns: columns by whose values scores are reported too.
        context_column: column of a text that precedes the prompt, separated by ``---`` as in HarmBench's contextual
            behaviours; a row without one has the prompt alone.

    Raises:
        ValueError: when read: a missing or broken file, columns that are missing or cannot be chosen (with those that
            there are), an empty prompt or answer, filters that keep no row.
    """

    file: str
    prompt_column: str | None = None
    image_column: str | None = None
    answer_column: str | None = None
    filters: dict[str, Value | list[Value]] | None = None
    image_folder: str | None = None
    category_columns: list[str] | None = None
    context_column: str | None = None

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        path = find_file([Path(self.file)], "file of prompts")
        folder = path.parent if self.image_folder is None else Path(self.image_folder)
        kept = {column: _values(value) for column, value in (self.filters or {}).items()}
        records = []
        prompt_columns: tuple[str, ...] = ()
        unread: Counter[str] = Counter()
        for index, (where, row) in enumerate(read_table(path)):
            if index == 0:
                prompt_columns = self._check_columns(list(row), path.name)
            if all(_comparable(row.get(column)) in values for column, values in kept.items()):
                identity = next((row[key] for key in ID_COLUMNS if row.get(key) is not None), f"{path.stem}-{index}")
                images = [image_of_cell(row[c], folder, where) for c in [self.image_column] if c and row.get(c)]
                response = None if self.answer_column is None else text_of(row, self.answer_column, where)
                prompt = in_context(_prompt(row, prompt_columns, where), row, self.context_column, where)
                unread.update(self._unread_images(row, prompt_columns))
                record = conversation(identity, prompt, images, response, where)
                schemes = {column: column for column in self.category_columns or ()}
                records.append(replace(record, categories=categories_of(row, schemes, where)))
        if not records:
            raise ValueError(f"{path.name} holds no prompts{f' with {shown(self.filters)}' if self.filters else ''}.")
        if unread:
            rank_zero_warn(
                f"{path.name}: {names(unread)} {'is' if len(unread) == 1 else 'are'} not read, which "
                f"{max(unread.values())} of {len(records)} prompts have: they are asked without a picture. Pass "
                "image_column= (and image_folder=), or leave the column out of the file.",
                category=DataWarning,
            )
        return records

    def _unread_images(self, row: Row, prompts: tuple[str, ...]) -> list[str]:
        """The columns that are called as images are, and hold something, where no image is read."""
        read = {
            *prompts,
            self.answer_column,
            self.context_column,
            *(self.category_columns or ()),
            *(self.filters or ()),
        }
        called = [] if self.image_column else [column for column in row if _IMAGE_NAME.search(column)]
        return [column for column in called if column not in read and _may_be_image(row.get(column))]

    def _check_columns(self, columns: list[str], name: str) -> tuple[str, ...]:
        """Return the columns of the prompts, the first that is not empty counts."""
        asked = [self.prompt_column, self.image_column, self.answer_column, self.context_column]
        asked += [*(self.filters or {}), *(self.category_columns or ())]
        unknown = [column for column in asked if column is not None and column not in columns]
        if unknown:
            raise ValueError(f"{name} has no columns {names(unknown)}; it has {names(columns)}.")
        if self.prompt_column is not None:
            return (self.prompt_column,)
        found = [column for column in columns if column.lower() in PROMPT_COLUMNS]
        if found in (["adversarial", "vanilla"], ["vanilla", "adversarial"]):
            return ("adversarial", "vanilla")
        found = found or columns
        if len(found) != 1:
            raise ValueError(
                f"{name} has the columns {names(columns)}; which of {names(found)} holds the prompts is "
                "unclear; pass prompt_column=."
            )
        return (found[0],)


def in_context(prompt: str, row: Row, column: str | None, where: str) -> str:
    """Return the prompt with the row's context before it, as HarmBench asks for a contextual behaviour."""
    if column is None or not row.get(column):
        return prompt
    return f"{text_of(row, column, where)}\n\n---\n\n{prompt}"


def _prompt(row: Row, columns: tuple[str, ...], where: str) -> str:
    column = next((column for column in columns if row.get(column)), columns[0])
    turns = row.get(column)
    if not isinstance(turns, list):
        return text_of(row, column, where)
    if len(turns) != 1:
        raise ValueError(
            f"{where}: {shown(column)} has {len(turns)} turns; expected one, since no answers are between them."
        )
    return text_of({column: turns[0]}, column, where)


def _values(value: Value | list[Value]) -> set[str]:
    return {_comparable(item) for item in (value if isinstance(value, list) else [value])}


def _comparable(value: Any) -> str:
    return str(value).strip().lower()


def _may_be_image(cell: Any) -> bool:
    """Whether a cell may hold a picture or its path: it holds something, and no number or truth value."""
    if isinstance(cell, str):
        return bool(cell) and not re.fullmatch(r"\s*(?:[-+]?[\d.]+|true|false|yes|no)\s*", cell, re.IGNORECASE)
    return bool(cell) and not isinstance(cell, Value)
