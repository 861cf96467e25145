"""Tables of every suffix hold the same rows, and broken ones are named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from hpa_lightning.data.readers.table_files import read_table

ROWS = [{"id": "1", "prompt": 'two\nlines, "quoted"'}, {"id": "2", "prompt": "grün\ttab"}, {"id": "3", "prompt": ""}]


def write(path: Path) -> Path:
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["id", "prompt"], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS) if path.suffix == ".json" else "\n".join(map(json.dumps, ROWS)))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.CSV"])
def test_rows_are_the_same_whatever_the_file(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name.lower()).rename(tmp_path / name)
    found = list(read_table(path))
    assert [row for _, row in found] == ROWS
    assert all(where.startswith(f"{name}[{index}]") for index, (where, _) in enumerate(found))


def test_a_text_file_is_its_lines_without_the_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" one \n\n\u2028two\n")
    assert [row for _, row in read_table(tmp_path / "a.txt")] == [{"prompt": "one"}, {"prompt": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,id\n1,2\n", "a.csv has the column 'id' twice"),
        ("a.csv", b"id,prompt\n1,x,y\n", r"a.csv\[0\] \(line 2\): 3 cells; expected 2: \['id', 'prompt'\]"),
        ("a.csv", b"id,prompt\n1,x\n2\n", r"a.csv\[1\] \(line 3\): 1 cells"),
        ("a.tsv", b"id\n\xff\n", "a.tsv is not UTF-8 after line"),
        ("a.csv", b'id,prompt\n1,x\n2,"y\n3,z\n', "a.csv: broken in the row behind line 2: unexpected end of data"),
        ("a.tsv", b'prompt\n"Yes", he said\n', "a.tsv: broken in the row behind line 1: '\t' expected after"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read as parquet after 0 rows"),
        ("a.json", b"[3]", r"a.json\[0\].*: a int; expected an object"),
        ("a.xlsx", b"x", "a.xlsx ends with '.xlsx'; expected one of .json"),
    ],
)
def test_broken_tables_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_table(tmp_path / name))
    with pytest.raises(ValueError, match="there is no file"):
        list(read_table(tmp_path / "none.csv"))
