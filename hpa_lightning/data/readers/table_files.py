"""Rows of JSON, JSON lines, CSV, TSV, text and parquet files, each with the place that messages name it by."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpa_lightning.data.images import is_file
from hpa_lightning.data.readers.json_file import JsonFile
from hpa_lightning.parsing import read_text
from hpa_lightning.values import cut, names

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")

Row = Mapping[str, Any]

LONGEST_CELL = 1 << 30
"""Characters of a cell: pictures are in TSV files as base64, and csv's own limit is 131072."""


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file, chosen by its suffix, with the place of each.

    A text file has one column, ``prompt``: its lines, without the empty ones. Cells of CSV and TSV files are strings;
    a quoted cell may go over several lines. Parquet is read some rows at a time.

    Raises:
        ValueError: named by file, index and line: no such file, another suffix, a file that is broken or not UTF-8,
            a row with too few or too many cells, text behind a closing quote, a quote that is never closed, or a row
            that is no object.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "prompts.tsv"
    >>> _ = file.write_text('id\\tprompt\\n7\\t"two\\nlines"\\n')
    >>> list(read_table(file))
    [('prompts.tsv[0] (line 3)', {'id': '7', 'prompt': 'two\\nlines'})]
    """
    if not is_file(path):
        raise ValueError(f"there is no file {str(path)!r}; expected one of {', '.join(SUFFIXES)}.")
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        yield from _separated(path, "," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        yield from _parquet(path)
    elif suffix == ".txt":
        lines = [line.strip() for line in read_text(path).split("\n")]
        for number, line in enumerate(filter(None, lines)):
            yield f"{path.name}[{number}]", {"prompt": line}
    elif suffix in {".json", ".jsonl"}:
        for where, row in json_rows(path):
            if not isinstance(row, Mapping):
                raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
            yield where, row
    else:
        raise ValueError(f"{path.name} ends with {path.suffix!r}; expected one of {', '.join(SUFFIXES)}.")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the values of a JSON list or of JSON lines, with the place of each.

    Raises:
        ValueError: broken JSON, named by file, index and line.
    """
    file = JsonFile(path)
    for index, row in file.rows():
        if isinstance(row, ValueError):
            raise row
        yield file.where(index), row


def _separated(path: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise ValueError(f"{path.name} has the column {twice[0][:60]!r} twice; expected each once.")
            for index, row in enumerate(reader):
                where = f"{path.name}[{index}] (line {reader.line_num})"
                columns = list(reader.fieldnames or ())
                if None in row or None in row.values():
                    found = sum(value is not None for key, value in row.items() if key is not None)
                    found += len(row.get(None, ()))
                    raise ValueError(f"{where}: {found} cells; expected {len(columns)}: {names(columns)}.")
                yield where, row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is not UTF-8 after line {reader.line_num}; expected UTF-8.") from error
        except csv.Error as error:
            raise ValueError(f"{path.name}: broken in the row behind line {reader.line_num}: {error}.") from error


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow.parquet import ParquetFile

    index = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield f"{path.name}[{index}]", row
                    index += 1
    except Exception as error:  # pyarrow has many error classes, and values that Python has no type for others
        raise ValueError(f"{path.name} cannot be read as parquet after {index} rows: {cut(error, 300)}.") from error
