"""Records that stay in their file: the same ones as when all are read, in little memory, wherever they are taken."""

from __future__ import annotations

import codecs
import json
import pickle
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.record_files import lines, row
from torch.utils.data import DataLoader

from hpa_lightning.data import Record, open_records
from hpa_lightning.data.readers import json_text
from hpa_lightning.data.readers.record_file import RecordFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(lines([row(index) for index in range(20)]))
    return path


FORMS = {
    "lines": lines([row(index) for index in range(5)]),
    "lines with empty ones": "\n  \n" + lines([row(index) for index in range(5)]).replace("\n", "\n\n\n"),
    "lines of Windows": lines([row(index) for index in range(5)]).replace("\n", "\r\n"),
    "lines of old Macs": lines([row(index) for index in range(5)]).replace("\n", "\r"),
    "no end of line": lines([row(index) for index in range(5)]).rstrip(),
    "a list": json.dumps([row(index) for index in range(5)]),
    "a printed list": "\n " + json.dumps([row(index) for index in range(5)], indent=2, ensure_ascii=False) + "\n",
}


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["", "with a mark"])
@pytest.mark.parametrize("chunk", [1, 13, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, chunk: int, mark: bytes
) -> None:
    monkeypatch.setattr(json_text, "_CHUNK", chunk)
    path = tmp_path / "t.json"
    path.write_bytes(mark + FORMS[form].encode())
    passed: list[Record] = []
    records = RecordFile(path, visit=passed.append)
    assert [json.loads(records.row_bytes(index)) for index in range(5)] == [row(index) for index in range(5)]
    for index in random.Random(0).sample(range(5), 5):  # in any order
        assert records[index] == passed[index]
        assert records[index].where == passed[index].where
        assert records[index].prompt == f"Is {index} a number? ä€😀"


def test_a_list_that_breaks_off_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([row(0), row(1)], indent=1)[:-40])
    with pytest.raises(ValueError, match=r"t\.json: broken JSON at line 2\d: "):
        RecordFile(path)
    path.write_text(json.dumps([row(0)]) + "\n\n7")
    with pytest.raises(ValueError, match=r"t\.json: broken JSON at line 3: Extra data\."):
        RecordFile(path)
    path.write_bytes(json.dumps([row(0)]).encode()[:-1] + b',"\xff"]')
    with pytest.raises(ValueError, match=rf"t\.json is not UTF-8 \(byte {path.stat().st_size - 3}\)"):
        RecordFile(path)


def test_little_memory_for_a_record(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for count in (500, 4000):
        path.write_text(lines([row(index) for index in range(count)]))
        tracemalloc.start()
        records = open_records(path)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(records) == count
        # 8 bytes and what an array keeps in reserve; what the module itself sets up is not for a record
        assert held < 12 * count + 60_000
    assert records[-1].prompt.startswith("Is 3999 ")


def test_a_changed_file_is_an_error(file: Path) -> None:
    records = open_records(file)
    assert records[3].id == "3"
    content = file.read_bytes()
    file.write_bytes(b" " + content)
    with pytest.raises(ValueError, match=r"train\.jsonl was changed while it is in use"):
        records[3]
    other = file.with_name("other")
    other.write_bytes(content)
    other.replace(file)  # another file of this name: those who have the old one open go on with it
    with pytest.raises(ValueError, match="was changed"):
        pickle.loads(pickle.dumps(records))[3]  # another process opens it anew


@pytest.mark.parametrize("started", ["fork", "spawn"])
def test_workers_read_the_same(file: Path, started: str) -> None:
    records = open_records(file)
    records[0]  # the file is open when the workers start
    if started == "spawn":  # they get a copy of the data set, which opens the file anew
        records = pickle.loads(pickle.dumps(records))
    loader: DataLoader = DataLoader(
        records,  # type: ignore[arg-type]
        batch_size=3,
        num_workers=2,
        collate_fn=_ids,
        multiprocessing_context="fork",
    )
    assert [identity for batch in loader for identity in batch] == [str(index) for index in range(20)]


def _ids(records: Sequence[Record]) -> list[str]:
    return [record.id for record in records]
