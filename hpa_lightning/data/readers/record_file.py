"""The records of a JSON file: all checked in one pass, then read one at a time, where they are."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

from hpa_lightning.data.readers.json_file import JsonFile
from hpa_lightning.data.readers.row_fields import Reading
from hpa_lightning.data.readers.row_parsers import RowParser, valid
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record, check_answer
from hpa_lightning.data.sequences import RecordSequence


class RecordFile(RecordSequence):
    """The records of a JSON list or of JSON lines; in memory are their places, 8 bytes a record.

    Making one reads the file once, from its start to its end, and parses and checks every record. Then a record is
    read, parsed and checked again whenever it is taken; a file that was changed in the meantime is an error.

    Args:
        path: the file.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        image_place: see :func:`~hpa_lightning.data.readers.read_records`.
        visit: called with every record of the pass; what it raises counts as the record's fault.
        broken: takes what is wrong with a record, which is left out then; an error when ``None``.
        ahead: how many rows the pass parses; of those behind them only the places are found, and they are checked
            when they are taken. ``None``: all.
        unparsed: called with the bytes of every row behind ``ahead``.
        needs_answer: check that a record behind ``ahead`` can be learnt when it is taken.

    Raises:
        ValueError: named by file, index and line: broken JSON, an unknown format, a broken record, no record.
    """

    def __init__(
        self,
        path: Path,
        image_folder: str | Path | None = None,
        image_place: ImagePlace = "front",
        visit: Callable[[Record], None] = lambda record: None,
        broken: list[str] | None = None,
        ahead: int | None = None,
        unparsed: Callable[[bytes], None] = lambda row: None,
        needs_answer: bool = False,
    ) -> None:
        self._folder = Path(image_folder) if image_folder is not None else path.parent
        self._place: ImagePlace = image_place
        self._ahead = ahead
        self._needs_answer = needs_answer
        self._file = JsonFile(path)
        self._parser = RowParser()
        self._good: array[int] | None = None  # rows that are no errors, where some are
        reading = Reading(self._folder, image_place)
        for index, row in self._file.rows(lambda index: ahead is None or index < ahead):
            if ahead is not None and index >= ahead:
                unparsed(row)
                continue
            try:
                visit(self._parser.record(row, self._file.where(index), reading))
            except ValueError as error:
                if broken is None:
                    raise
                self._good = array("Q", range(index)) if self._good is None else self._good
                broken.append(str(error))
            else:
                if self._good is not None:
                    self._good.append(index)
        if not len(self._file):
            raise ValueError(f"{path.name} holds no records; expected at least one.")
        reading.warn(path.name)

    def __len__(self) -> int:
        return len(self._file) if self._good is None else len(self._good)

    @property
    def unparsed(self) -> int:
        """How many records at the end are checked when they are taken, and not before."""
        return 0 if self._ahead is None else max(len(self) - self._ahead, 0)

    def record(self, index: int) -> Record:
        """Read the record at an index from 0 on.

        Raises:
            ValueError: named by file, index and line: it is broken (where the pass did not check it), or the file was
                changed since.
        """
        row = index if self._good is None else self._good[index]
        # What is not read was reported in the pass.
        found = self._parser.record(valid(self._file[row]), self._file.where(row), Reading(self._folder, self._place))
        if self._ahead is not None and row >= self._ahead and self._needs_answer:
            check_answer(found)
        return found

    def row_bytes(self, index: int) -> bytes:
        """Read the text of the record at an index from 0 on."""
        return self._file.row_bytes(index if self._good is None else self._good[index])
