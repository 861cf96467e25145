"""What the parsers of one file share: how it is read, and what nothing reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import IMAGE_MARK, ImagePlace, Turn, check_image_place
from hpa_lightning.values import names, shown

#: Keys that every format may have.
COMMON_KEYS = frozenset({"id", "question_id", "system", "image", "images", "answer", "answers", "answer_bbox"})

#: What would be lost with these keys changes what a model is shown.
_MEDIA = frozenset({"video", "videos", "audio", "audios", "speech", "objects"})
_NUMBER = re.compile(r"\d+")
_MEDIA_MARKS = ("<video>", "<audio>")
# As other programs mark images: <image_1>, <image 1> (MMMU), <|image_1|>, <|image_pad|>, <IMAGE>, <ImageHere>, [image].
_OTHER_IMAGE_MARKS = re.compile(
    r"<\|?(?:image|vision|img(?=[ _-])|im(?=_(?:start|end|patch)>))"
    r"(?:[ _-]?(?:\d{1,3}|pad|start|end|patch|token|soft_token|placeholder|here|context))*\|?>"
    r"|\[(?:image|img)(?:[ _-]?\d{1,3})?\]",
    re.IGNORECASE,
)
_NAMED_MEDIA = re.compile(r"<(img|image|video|audio)>[^<\s][^<\n]{0,500}</\1>")


_QUOTED = r"(?:'[^'\n]*'|\"[^\"\n]*\")"
_WRITTEN_LIST = re.compile(rf"\[\s*{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*\]")


#: What is doubtful of answers -> what a file's warning says of them, behind their number.
_DOUBTFUL = {
    "list": "are a list that is written as a text, the first is {}: each is taken as one answer. Write a JSON list of "
    "texts where several are meant.",
    "whole": "are whole numbers with a decimal point, the first is {}: each is learnt as it stands, and to metrics "
    "that compare texts a whole number without the point is another answer. Tables with empty cells write numbers so; "
    "take the point away where it is not meant.",
}


class DataWarning(UserWarning):
    """Something doubtful in a data file."""


@dataclass
class Reading:
    """How one file is read.

    Args:
        folder: that relative image paths start from.
        image_place: see :func:`~hpa_lightning.data.readers.turns.messages_of`.

    Attributes:
        unread: a key that holds something, or a mark of media -> the number of records in which it is not read.
        records: how many records were parsed.
    """

    folder: Path = field(default_factory=Path)
    image_place: ImagePlace = "front"
    unread: Counter[str] = field(default_factory=Counter)
    records: int = 0
    _found: set[str] = field(default_factory=set)
    _addresses: dict[int, str] = field(default_factory=dict)  # hash of a file's path -> the address it stands for
    _shared: list[tuple[str, str, str]] = field(default_factory=list)
    _doubtful: Counter[str] = field(default_factory=Counter)  # of answers
    _first_doubtful: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_image_place(self.image_place)

    def next_record(self) -> None:
        """Count a record, and the unread keys of the one before."""
        self.unread.update(self._found)
        self._found.clear()
        self.records += 1

    def image(self, cell: Any, where: str) -> Any:
        """Return the image in a cell, see :func:`image_of_cell`; two addresses that are one file are noted.

        Raises:
            ValueError: named by ``where``.
        """
        found = image_of_cell(cell, self.folder, where)
        if isinstance(cell, Mapping):
            cell = cell.get("path")
        if isinstance(found, str) and isinstance(cell, str) and cell.lower().startswith(("http://", "https://")):
            address = cell.partition("://")[2]
            if self._addresses.setdefault(hash(found), address) != address:
                self._shared.append((self._addresses[hash(found)], address, found))
        return found

    def note_unread(self, found: Mapping[str, Any], known: Collection[str], where: str, what: str = "") -> None:
        """Note the keys of a row, a turn or a part that nothing reads.

        Args:
            found: the row, the turn or the part.
            known: keys that are read.
            where: the row, for messages.
            what: prefix of the keys in the warning, such as ``"messages[]."``.

        Raises:
            ValueError: named by ``where``: a key that holds media, which would be lost.
        """
        for key, value in found.items():
            if key in known or value is None or (isinstance(value, str | list | Mapping) and not value):
                continue
            if key in _MEDIA:
                raise ValueError(
                    f"{where}: {what}{key} is {shown(value)}; video, audio and `objects` of grounding cannot be read, "
                    "and without them the record says something else. Remove the record, or write what it shows as "
                    "images and text."
                )
            self._found.add(f"unknown key {f'{what}{str(key)[:60]}'!r}")

    def note_marks(self, turns: Iterable[Turn], where: str) -> None:
        """Note marks of video and audio in the user's texts, which stay text.

        Raises:
            ValueError: named by ``where``: a text that names a file of media between tags, as Qwen-VL's and ms-swift's
                first formats did; the model would read a path instead of a picture.
        """
        texts = [part["text"] for turn in turns if turn.role == "user" for part in turn.parts if part["type"] == "text"]
        for text in texts:
            if (named := _NAMED_MEDIA.search(text)) is not None:
                raise ValueError(
                    f"{where}: the text holds {shown(named[0])}, a file between tags, which is not opened. Expected "
                    "the mark <image> in its place and the image's path under 'images'; other media cannot be read."
                )
            self._found.update(f"mark {mark} in the text" for mark in _MEDIA_MARKS if mark in text)

    def note_image_marks(self, turns: Sequence[Turn]) -> None:
        """Note image marks that are not ``<image>``, in a record whose images stand at the front for want of one."""
        parts = [part for turn in turns if turn.role == "user" for part in turn.parts]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(texts) < len(parts) or any(IMAGE_MARK in text for text in texts):
            return
        for text in texts:
            marks = {_NUMBER.sub("N", match[0]) for match in _OTHER_IMAGE_MARKS.finditer(text)}
            self._found.update(f"mark {mark} (expected: {IMAGE_MARK}) in the text" for mark in marks)

    def answers(self, row: Row, where: str) -> tuple[str, ...]:
        """Return the accepted answers, see :func:`answers_of`; what is doubtful of them is noted.

        Raises:
            ValueError: named by ``where``: no answers.
        """
        found = answers_of(row, where)
        key, given = _given_answers(row)
        for text, value in zip(found, _listed(given), strict=True):
            if isinstance(value, float):
                doubt = "whole" if value.is_integer() and key != "answer_bbox" else None
            else:
                doubt = "list" if _WRITTEN_LIST.fullmatch(text.strip()) else None
            if doubt is not None:
                self._doubtful[doubt] += 1
                self._first_doubtful.setdefault(doubt, f"{shown(text)} of {where}")
        return found

    def warn(self, name: str) -> None:
        """Warn, once for the whole file, of what was not read."""
        self.unread.update(self._found)
        self._found.clear()
        if self.unread:
            counts = sorted(self.unread.items(), key=lambda item: (-item[1], item[0]))
            reported = [f"{what} in {count} of {self.records} records" for what, count in counts]
            more = f" and {len(reported) - 10} more" if len(reported) > 10 else ""
            rank_zero_warn(f"{name}: {', '.join(reported[:10])}{more}; not read.", category=DataWarning)
        for doubt, count in self._doubtful.items():
            said = _DOUBTFUL[doubt].replace("{}", self._first_doubtful[doubt])
            rank_zero_warn(f"{name}: {count} answers {said}", category=DataWarning)
        self._doubtful.clear()
        self._first_doubtful.clear()
        if self._shared:
            one, other, file = self._shared[0]
            rank_zero_warn(
                f"{name}: the images {shown(one)} and {shown(other)} are one file here, {shown(file)} (such addresses: "
                f"{len(self._shared)}). If they are not one picture, "
                "download each to its host and path below the folder, as `wget -x` does.",
                category=DataWarning,
            )
            self._shared.clear()


def identity_of(row: Row, where: str, default: str | None = None) -> str:
    """Return ``id``, else ``question_id``, else ``default`` (where the row stands).

    Raises:
        ValueError: named by ``where``: an id that is neither a text nor a finite number.
    """
    identity = next((row[key] for key in ("id", "question_id") if row.get(key) is not None), default or where)
    if not _is_text_or_number(identity):
        raise ValueError(f"{where}: the id is {shown(identity)}; expected a text or a number.")
    return str(identity)


def system_of(row: Row, where: str) -> str | None:
    """Return the system prompt under ``system``, if there is one.

    Raises:
        ValueError: named by ``where``: it is no text.
    """
    system = row.get("system")
    if system is None or system == "":
        return None
    if not isinstance(system, str):
        raise ValueError(f"{where}: 'system' is {shown(system)}; expected a text.")
    return system


def images_of(row: Row, where: str, reading: Reading) -> tuple[Any, ...]:
    """Return the images under ``image`` or ``images``: none, one, or a list; see :meth:`Reading.image`.

    Raises:
        ValueError: named by ``where``: an image of another kind, or images under both keys.
    """
    given = {key: row[key] for key in ("image", "images") if row.get(key) not in (None, "", [], ())}
    if len(given) == 2 and given["image"] not in (given["images"], *_listed(given["images"])[:1]):
        raise ValueError(f"{where}: images under 'image' and under 'images'; expected one of the two.")
    cells = _listed(given.get("images", given.get("image", [])))
    return tuple(reading.image(cell, where) for cell in cells)


def answers_of(row: Row, where: str) -> tuple[str, ...]:
    """Return the accepted answers under ``answers`` or ``answer``: none, one, or a list.

    CoIN's grounding file has its box under ``answer_bbox``.

    Raises:
        ValueError: named by ``where``: an answer that is neither a text nor a finite number. What pandas writes where
            a table has nothing is NaN, and ``true`` could be meant as "true", "True" or "yes".
    """
    _, value = _given_answers(row)
    answers = _listed(value)
    if not all(map(_is_text_or_number, answers)):
        raise ValueError(f"{where}: the answer is {shown(value)}; expected a string or a list of strings.")
    return tuple(str(answer) for answer in answers)


def _given_answers(row: Row) -> tuple[str, Any]:
    """The key and what stands there."""
    keys = ("answers", "answer", "answer_bbox")
    return next(((key, row[key]) for key in keys if row.get(key) is not None), ("", []))


def turns_of(row: Row, key: str, where: str) -> list[Any]:
    """Return the list of turns under ``key``.

    Raises:
        ValueError: named by ``where``: no list, an empty one, or one of something else than objects.
    """
    turns = row.get(key)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: {key!r} is {shown(turns)}; expected a list of turns.")
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise ValueError(f"{where}: turn {index} is {shown(turn)}; expected an object.")
    return turns


def text_in(row: Row, key: str, where: str) -> str:
    """Return the text under ``key``, which may be empty; nothing there is an empty text.

    Raises:
        ValueError: named by ``where``: something else than a text.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} is {shown(value)}; expected a text. The row has {names(row)}.")
    return value or ""


def _is_text_or_number(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int or (isinstance(value, float) and isfinite(value))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
