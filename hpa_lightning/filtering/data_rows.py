"""The rows of a data file: read as records, and written again as they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hpa_lightning.data.images import is_file
from hpa_lightning.data.readers.json_file import JsonFile
from hpa_lightning.data.readers.row_fields import Reading, identity_of
from hpa_lightning.data.readers.row_parsers import RowParser, valid
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.safety_sets.vlguard import VLGuard

_BATCH = 256
"""Rows of a parquet file that are in memory at a time."""


@dataclass(frozen=True)
class DataRow:
    """A row of a data file.

    Args:
        index: from 0 on.
        where: the row, for messages.
        id: as the row names itself, else ``where``.
        records: its conversations: one, or both of a safe image of VLGuard.
        problem: why it cannot be read; there are no records then.
    """

    index: int
    where: str
    id: str
    records: tuple[Record, ...] = ()
    problem: str = ""


class DataRows:
    """The rows of a JSON list, of JSON lines or of a parquet file in a form that ``read_records`` knows, or VLGuard's.

    Little is in memory: 8 bytes a row of JSON, some rows of parquet.

    Args:
        path: the file, which is never written.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.

    Raises:
        ValueError: there is no such file.
    """

    def __init__(self, path: str | Path, image_folder: str | Path | None = None) -> None:
        self.path = Path(path)
        if not is_file(self.path):
            raise ValueError(f"there is no data file {str(path)!r}; expected JSON, JSON lines or parquet.")
        self.image_folder = Path(image_folder) if image_folder is not None else self.path.parent
        if not self.image_folder.is_dir():
            raise ValueError(f"image_folder: there is no folder {str(image_folder)!r}.")
        self.is_parquet = self.path.suffix.lower() == ".parquet"
        self._json = None if self.is_parquet else JsonFile(self.path)
        self._parser = RowParser()
        self._is_vlguard: bool | None = None

    def check(self, stop: int | None = None, progress: bool = False) -> Iterator[DataRow]:
        """Yield every row, or the first ``stop``, in one pass; then warn of keys that are not read.

        Args:
            stop: rows; all if ``None``.
            progress: show a bar with the time that is left.

        Raises:
            ValueError: named by file and line: a file that is broken, empty, or of an unknown form.
        """
        reading = Reading(self.image_folder)
        count = 0
        counted = {"total": stop or self._parquet_rows(), "unit": " records"}
        if self._json is not None and stop is None:  # how many there are is not known yet
            counted = {"total": self.path.stat().st_size, "unit": "B", "unit_scale": True}
        with tqdm(desc="Checking", disable=not progress, **counted) as bar:
            for index, where, row in islice(self._found(), stop):
                count += 1
                yield self._row(index, where, row, reading)
                bar.update(1 if self._json is None or stop is not None else self._json.place - bar.n)
        if not count:
            raise ValueError(f"{self.path.name} holds no records; expected at least one.")
        reading.warn(self.path.name)

    def from_index(self, start: int) -> Iterator[DataRow]:
        """Yield the rows from an index on, after :meth:`check`, which has reported what is not read."""
        reading = Reading(self.image_folder)
        if self._json is None:
            for index, where, row in self._found():
                if index >= start:
                    yield self._row(index, where, row, reading)
            return
        for index in range(start, len(self._json)):
            try:
                row = self._json[index]
            except ValueError as error:
                row = error
            yield self._row(index, self._json.where(index), row, reading)

    def where(self, index: int) -> str:
        """Where a row is, for messages."""
        return f"{self.path.name}[{index}]" if self._json is None else self._json.where(index)

    def copy(self, kept: Iterable[bool], target: Path, rest: Path) -> None:
        """Write every row as it is, to ``target`` or, where ``kept`` has false, to ``rest``.

        Args:
            kept: for each row, in order.
            target: of the same format as the file itself.
            rest: likewise.
        """
        if self._json is None:
            self._copy_parquet(kept, target, rest)
            return
        between, opening, closing = (b",\n", b"[\n", b"\n]\n") if self._json.is_list else (b"\n", b"", b"\n")
        with target.open("wb") as one, rest.open("wb") as other:
            for file in (one, other):
                file.write(opening)
            used = set()
            for index, keep in enumerate(kept):
                file = one if keep else other
                if file in used:
                    file.write(between)
                used.add(file)
                file.write(self._json.row_bytes(index).strip())
            for file in (one, other):
                file.write(closing if file in used or self._json.is_list else b"")

    def _parquet_rows(self) -> int:
        if self._json is not None:
            return 0
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.path) as file:
            return int(file.metadata.num_rows)

    def _copy_parquet(self, kept: Iterable[bool], target: Path, rest: Path) -> None:
        import pyarrow
        import pyarrow.compute
        from pyarrow.parquet import ParquetFile, ParquetWriter

        flags = iter(kept)
        with ParquetFile(self.path) as file:
            schema = file.schema_arrow
            with ParquetWriter(target, schema) as one, ParquetWriter(rest, schema) as other:
                for batch in file.iter_batches(batch_size=_BATCH):
                    mask = pyarrow.array(list(islice(flags, len(batch))), pyarrow.bool_())
                    one.write_batch(batch.filter(mask))
                    other.write_batch(batch.filter(pyarrow.compute.invert(mask)))

    def _found(self) -> Iterator[tuple[int, str, Any]]:
        """Index, place and value of every row; an error instead of a broken one."""
        if self._json is None:
            for index, (where, row) in enumerate(read_table(self.path)):
                yield index, where, row
        else:
            for index, row in self._json.rows():
                yield index, self._json.where(index), row

    def _row(self, index: int, where: str, row: Any, reading: Reading) -> DataRow:
        try:
            if self._is_vlguard is None:
                self._is_vlguard = isinstance(valid(row), dict) and "instr-resp" in row
            if not self._is_vlguard:
                record = self._parser.record(row, where, reading)
                return DataRow(index, where, record.id, (record,))
            if not isinstance(valid(row), dict):
                raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
            records = tuple(VLGuard(str(self.path.parent), subset="all").records_of(row, self.image_folder, where))
            return DataRow(index, where, identity_of(row, where, str(row["image"])), records)
        except ValueError as error:
            return DataRow(index, where, where, problem=str(error))
