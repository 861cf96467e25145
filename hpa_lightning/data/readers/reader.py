"""Opening a JSON, JSON-lines or parquet file of records, and naming what is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hpa_lightning.data.images import is_file
from hpa_lightning.data.readers.record_file import RecordFile
from hpa_lightning.data.readers.row_fields import Reading
from hpa_lightning.data.readers.row_parsers import FORMATS, parse_rows, valid
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record, check_record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.sequences import RecordSequence

__all__ = ["FORMATS", "as_records", "examine_records", "open_records", "parse_rows", "read_records", "valid"]


def read_records(
    path: str | Path, image_folder: str | Path | None = None, image_place: ImagePlace = "front"
) -> list[Record]:
    """Read a JSON list, a JSON-lines or a parquet file into memory; the format is inferred from the first record.

    :func:`open_records` leaves the records of JSON files on the disk.

    Keys that are not read are reported in one warning (:class:`DataWarning`) for the file.

    Args:
        path: the file.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        image_place: where in its turn the image of a mark ``<image>`` goes: at the ``"front"``, as LLaVA's
            preprocessing has it, or ``"as_written"``.

    Raises:
        ValueError: named by file, index and line: no such file, broken JSON, an unknown format, a broken record, or one
            with media that cannot be read.

    >>> import json, tempfile
    >>> file = Path(tempfile.mkdtemp()) / "train.json"
    >>> turns = [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2"}]
    >>> _ = file.write_text(json.dumps([{"id": 7, "conversations": turns}]))
    >>> read_records(file)[0].prompt
    'What is 1 + 1?'
    """
    found: list[Record] = []
    open_records(path, image_folder, image_place, visit=found.append)
    return found


def open_records(
    path: str | Path,
    image_folder: str | Path | None = None,
    image_place: ImagePlace = "front",
    *,
    visit: Callable[[Record], None] = lambda record: None,
    broken: list[str] | None = None,
    ahead: int | None = None,
    unparsed: Callable[[bytes], None] = lambda row: None,
    needs_answer: bool = False,
) -> Sequence[Record]:
    """Check the records of a file in one pass; those of JSON and JSON lines stay on the disk until they are taken.

    Args:
        path: the file.
        image_folder: see :func:`read_records`.
        image_place: see :func:`read_records`.
        visit: see :class:`RecordFile`, as all below. A parquet file is read into memory, and checked whole.
        broken: see there.
        ahead: see there.
        unparsed: see there.
        needs_answer: see there.

    Raises:
        ValueError: as of :func:`read_records`.
    """
    path = Path(path)
    if not is_file(path):
        raise ValueError(
            f"there is no data file {str(path)!r}; expected JSON (a list of records), JSON lines or parquet."
        )
    if path.suffix.lower() != ".parquet":
        return RecordFile(path, image_folder, image_place, visit, broken, ahead, unparsed, needs_answer)
    reading = Reading(Path(image_folder) if image_folder is not None else path.parent, image_place)
    records: list[Record] = []
    is_empty = True
    for found in parse_rows(read_table(path), path.name, reading):
        is_empty = False
        try:
            visit(valid(found))
            records.append(valid(found))
        except ValueError as error:
            if broken is None:
                raise
            broken.append(str(error))
    if is_empty:
        raise ValueError(f"{path.name} holds no records; expected at least one.")
    return records


def examine_records(
    data: str | Path | RecordSet | Sequence[Record],
    image_folder: str | Path | None,
    what: str,
    image_place: ImagePlace = "front",
) -> tuple[Sequence[Record], list[str]]:
    """Read what is good and say of everything else what is wrong, instead of stopping at the first error.

    Returns:
        The records, and a message for every broken one. Of a published set or of records in memory there is at most
        one message, and no record then.
    """
    broken: list[str] = []
    try:
        if not isinstance(data, str | Path):
            return as_records(data, image_folder, what), []
        return open_records(data, image_folder, image_place, broken=broken), broken
    except ValueError as error:
        return [], [*broken, str(error)]


def as_records(
    data: str | Path | RecordSet | Sequence[Record],
    image_folder: str | Path | None,
    what: str,
    image_place: ImagePlace = "front",
) -> Sequence[Record]:
    """Return the records of a path (see :func:`open_records`), of a published set or of a sequence, checked.

    Raises:
        ValueError: ``data`` is neither, empty, or holds a broken record; named by ``what`` and index.
    """
    if isinstance(data, str | Path):
        return open_records(data, image_folder, image_place)
    records = in_memory_records(data, what)
    for index, record in enumerate(records):
        check_item(record, index, what)
    return records


def in_memory_records(data: RecordSet | Sequence[Record], what: str) -> Sequence[Record]:
    """Return the records of a published set, or of a sequence (a copy, unless it holds no records itself).

    Raises:
        ValueError: there are none.
    """
    if isinstance(data, RecordSet):
        records: Sequence[Record] = data.read()
    else:
        records = data if isinstance(data, RecordSequence) else list(data)
    if not records:
        raise ValueError(f"{what} holds no records; expected at least one.")
    return records


def check_item(record: object, index: int, what: str) -> None:
    """Check that an item of a sequence is a record, see :func:`check_record`.

    Raises:
        ValueError: named by ``what`` and index, or by the record.
    """
    if not isinstance(record, Record):
        raise ValueError(f"{what}[{index}] is a {type(record).__name__}; expected a Record, or a path to a file.")
    check_record(record)
