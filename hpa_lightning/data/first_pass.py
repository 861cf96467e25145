"""One pass over a data set before anything is trained: every check of it, its digest and its keys."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.bad_records import report_skipped
from hpa_lightning.data.digests import RecordsDigest
from hpa_lightning.data.images import is_file
from hpa_lightning.data.overlap import KeyedRecords, short_key
from hpa_lightning.data.readers import open_records
from hpa_lightning.data.readers.reader import check_item, in_memory_records
from hpa_lightning.data.readers.record_file import RecordFile
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record, check_answer, missing_images
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.sequences import ChosenRecords, JoinedRecords
from hpa_lightning.values import shown

_REMEMBERED = 1 << 14
"""Image files that are remembered to be there or not; several records may show one."""


class ReadRecords:
    """A data set that was read: its records, on the disk or in memory, and what the pass over them found.

    Args:
        records: all that can be used.
        keys: :func:`short_key` of every record that was parsed, where they were asked for.
        digest: of all records.
    """

    def __init__(self, records: Sequence[Record], keys: Sequence[int], digest: RecordsDigest) -> None:
        self.records = records
        self._keys = keys
        self._digest: RecordsDigest | None = digest

    def keyed(self, more: Sequence[Record] = ()) -> KeyedRecords:
        """Return the parsed records with their keys, and ``more`` records behind them with theirs."""
        known = JoinedRecords([self.records[: len(self._keys)], more])
        return KeyedRecords(known, array("Q", [*self._keys, *map(short_key, more)]) if more else self._keys)

    def digest(self, more: Sequence[Record] = ()) -> str:
        """Return the digest of the records and of ``more`` behind them, see :func:`records_digest`."""
        if self._digest is None:
            self._digest = RecordsDigest()
            unparsed = self.records.unparsed if isinstance(self.records, RecordFile) else 0
            for record in self.records[: len(self.records) - unparsed]:
                self._digest.add(record)
            for index in range(len(self.records) - unparsed, len(self.records)):
                self._digest.add_bytes(self.records.row_bytes(index))  # type: ignore[attr-defined]
        return self._digest.extended(more)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_digest": None}  # a hash in the making cannot be copied to another process


class FirstPass:
    """Reads a data set from start to end, checks every record, and keeps none of a JSON file.

    Args:
        what: the data set, for messages.
        checks: called with every record.
        check_images: check that every image file exists.
        needs_answer: check that every record can be learnt.
        keyed: whether keys are wanted.
        skip: leave out records that are broken, with one warning; otherwise the first one is an error.
        ahead: of a JSON file how many records are checked; the others are when they are taken. ``None``: all.
    """

    def __init__(
        self,
        what: str,
        checks: Sequence[Callable[[Record], None]] = (),
        check_images: bool = True,
        needs_answer: bool = False,
        keyed: bool = True,
        skip: bool = False,
        ahead: int | None = None,
    ) -> None:
        self._what = what
        self._checks = checks
        self._check_images = check_images
        self._needs_answer = needs_answer
        self._keyed = keyed
        self._skip = skip
        self._ahead = ahead
        self._is_there = lru_cache(_REMEMBERED)(is_file)
        self._keys = array("Q")
        self._digest = RecordsDigest()
        self._missing = 0
        self._first_missing = ("", "")

    def read(
        self, data: str | Path | RecordSet | Sequence[Record], image_folder: str | None, image_place: ImagePlace
    ) -> ReadRecords:
        """Read the data.

        Raises:
            ValueError: broken records or missing image files, unless they are skipped; nothing that can be used.
        """
        broken: list[str] = []
        if isinstance(data, str | Path):
            records = open_records(
                data,
                image_folder,
                image_place,
                visit=self._visit,
                broken=broken if self._skip else None,
                ahead=self._ahead,
                unparsed=self._digest.add_bytes,
                needs_answer=self._needs_answer,
            )
        else:
            records = self._held(in_memory_records(data, self._what), broken)
        if self._missing:
            where, path = self._first_missing
            raise ValueError(
                f"{self._what}: {self._missing} image files are missing, the first in {where}: {shown(path)}; check "
                "`image_folder`, or pass check_images=False to find out later."
            )
        report_skipped(broken, self._what)
        if not records:
            raise ValueError(f"{self._what} holds no record that can be used.")
        if isinstance(records, RecordFile) and records.unparsed:
            rank_zero_warn(
                f"{self._what}: {records.unparsed} of {len(records)} records were not checked (check_ahead="
                f"{self._ahead}): a broken one, or a missing image, ends the fit when it is reached, and test records "
                "among them are not found."
            )
        return ReadRecords(records, self._keys, self._digest)

    def _held(self, records: Sequence[Record], broken: list[str]) -> Sequence[Record]:
        """Check records that are there already."""
        good = array("Q")
        for index, record in enumerate(records):
            try:
                check_item(record, index, self._what)
                self._visit(record)
            except ValueError as error:
                if not self._skip:
                    raise
                broken.append(str(error))
            else:
                good.append(index)
        return ChosenRecords(records, good) if broken else records

    def _visit(self, record: Record) -> None:
        if self._needs_answer:
            check_answer(record)
        for check in self._checks:
            check(record)
        missing = missing_images([record], self._is_there) if self._check_images else []
        if missing and self._skip:
            raise ValueError(f"{record.where}: image file {missing[0][1]!r} does not exist")
        if missing:
            self._first_missing = self._first_missing if self._missing else missing[0]
            self._missing += len(missing)
        if self._keyed:
            self._keys.append(short_key(record))
        self._digest.add(record)
