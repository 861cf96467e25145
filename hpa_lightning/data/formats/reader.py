"""Opening a JSON or JSON-lines file, telling its format, and naming what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpa_lightning.data.formats.chat import parse_chat
from hpa_lightning.data.formats.instructions import parse_instruction, parse_query
from hpa_lightning.data.formats.llava import parse_conversations, parse_pairs, parse_question
from hpa_lightning.data.formats.reading import Reading
from hpa_lightning.data.formats.tables import json_rows, read_table
from hpa_lightning.data.formats.turns import ImagePlace
from hpa_lightning.data.images import is_file
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.records import Record, check_record
from hpa_lightning.values import names

Parser = Callable[[Mapping[str, Any], str, Reading], Record]

#: name -> (keys that a record of the format has, parser)
FORMATS: dict[str, tuple[tuple[str, ...], Parser]] = {
    "LLaVA training file, ShareGPT": (("conversations",), parse_conversations),
    "ShareGPT in pairs": (("conversation",), parse_pairs),
    "chat": (("messages",), parse_chat),
    "LLaVA test file": (("text", "question_id"), parse_question),
    "Alpaca": (("instruction", "output"), parse_instruction),
    "query and response": (("query", "response"), parse_query),
}


def read_records(
    path: str | Path, image_folder: str | Path | None = None, image_place: ImagePlace = "front"
) -> list[Record]:
    """Read a JSON list, a JSON-lines or a parquet file; the format is told from the first record.

    Keys that are not read are told in one warning (:class:`DataWarning`) for the file.

    Args:
        path: the file.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        image_place: where in its turn an image of a mark ``<image>`` stands: at the ``"front"``, as LLaVA's
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
    return [valid(found) for found in _read(Path(path), image_folder, image_place)]


def examine_records(
    data: str | Path | RecordSet | Sequence[Record],
    image_folder: str | Path | None,
    what: str,
    image_place: ImagePlace = "front",
) -> tuple[list[Record], list[str]]:
    """Read what is good and say of everything else what is wrong, in place of stopping at the first error.

    Returns:
        The records, and a message for every broken one. Of a published set or of records in memory there is at most
        one message, and no record then.
    """
    try:
        if not isinstance(data, str | Path):
            return as_records(data, image_folder, what), []
        found = list(_read(Path(data), image_folder, image_place))
    except ValueError as error:
        return [], [str(error)]
    good = [item for item in found if isinstance(item, Record)]
    return good, [str(item) for item in found if not isinstance(item, Record)]


def _read(path: Path, image_folder: str | Path | None, image_place: ImagePlace) -> Iterator[Record | ValueError]:
    """Every record of a file, or what is wrong with it; raises where nothing can be read."""
    if not is_file(path):
        raise ValueError(
            f"there is no data file {str(path)!r}; expected JSON (a list of records), JSON lines or parquet."
        )
    is_parquet = path.suffix.lower() == ".parquet"
    rows: list[tuple[str, Any]] = list(read_table(path)) if is_parquet else json_rows(path, keep_broken=True)
    if not rows:
        raise ValueError(f"{path.name} holds no records; expected at least one.")
    folder = Path(image_folder) if image_folder is not None else path.parent
    yield from parse_rows(rows, path.name, Reading(folder, image_place))


def parse_rows(rows: Iterable[tuple[str, Any]], name: str, reading: Reading) -> Iterator[Record | ValueError]:
    """The record of every row, or what is wrong with it; the format is told from the first good one.

    Args:
        rows: where each row stands, and the row, or an error in its place.
        name: of the file, for the warning of what is not read.
        reading: how to read it.
    """
    parse: Parser | None = None
    for where, row in rows:
        try:
            parse = parse or _parser_of(valid(row), where)
            if not isinstance(valid(row), Mapping):
                raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
            reading.next_record()
            record = parse(row, where, reading)
            check_record(record)
        except ValueError as error:
            yield error
        else:
            yield record
    reading.warn(name)


def valid(found: Any) -> Any:
    """What was found, unless it is an error, which is raised."""
    if isinstance(found, ValueError):
        raise found
    return found


def as_records(
    data: str | Path | RecordSet | Sequence[Record],
    image_folder: str | Path | None,
    what: str,
    image_place: ImagePlace = "front",
) -> list[Record]:
    """Return the records of a path, of a published set or of a sequence, checked.

    Raises:
        ValueError: ``data`` is neither, empty, or holds a broken record; named by ``what`` and index.
    """
    if isinstance(data, str | Path):
        return read_records(data, image_folder, image_place)
    records = data.read() if isinstance(data, RecordSet) else list(data)
    if not records:
        raise ValueError(f"{what} holds no records; expected at least one.")
    for index, record in enumerate(records):
        if not isinstance(record, Record):
            raise ValueError(f"{what}[{index}] is a {type(record).__name__}; expected a Record, or a path to a file.")
        check_record(record)
    return records


def _parser_of(row: Any, where: str) -> Parser:
    keys = names(sorted(map(str, row))) if isinstance(row, Mapping) else type(row).__name__
    if isinstance(row, Mapping):
        for needed, parse in FORMATS.values():
            if all(key in row for key in needed):
                return parse
    expected = "; ".join(f"{name}: {', '.join(needed)}" for name, (needed, _) in FORMATS.items())
    raise ValueError(f"{where}: unknown format, the record has {keys}; expected one with these keys: {expected}.")
