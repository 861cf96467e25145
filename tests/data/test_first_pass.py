"""The first pass over a file: broken records by index, records that are checked later, digests."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
from support.record_files import lines, row
from support.tiny_mllms import training_records

from hpa_lightning.data import CVITDataModule, Task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(lines([row(index) for index in range(20)]))
    return path


def test_broken_records_are_left_out_by_index(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [json.dumps(row(index)) for index in range(6)]
    rows[0], rows[3] = "{", json.dumps(row(3, answer=" "))
    path.write_text("\n".join(rows))
    data = CVITDataModule([Task("a", str(path), [])], bad_records="skip")
    with pytest.warns(UserWarning, match=r"2 records were skipped(.|\n)*t\.jsonl\[0\] \(line 1\)(.|\n)*t\.jsonl\[3\]"):
        records = data._source.training(data.tasks[0])
    assert [record.id for record in records] == ["1", "2", "4", "5"]
    assert records[-1].where == "t.jsonl[5] (line 6)"


def test_records_behind_the_first_are_checked_when_they_are_taken(file: Path) -> None:
    file.write_text(
        file.read_text() + '{"id": 20}\n' + lines([{"id": 21, "conversations": row(21)["conversations"][:1]}])
    )
    task = Task("a", str(file), training_records(1))
    with pytest.raises(ValueError, match=r"train\.jsonl\[20\] \(line 21\)"):
        CVITDataModule([task])._source.training(task)
    with pytest.warns(UserWarning, match=r"12 of 22 records were not checked \(check_ahead=10\)"):
        records = CVITDataModule([task], check_ahead=10)._source.training(task)
    assert [record.id for record in records[:20]] == [str(index) for index in range(20)]
    for index in (20, 21):
        with pytest.raises(ValueError, match=rf"train\.jsonl\[{index}\] \(line {index + 1}\)"):
            records[index]


def test_rows_that_are_not_parsed_count_in_digests(file: Path, tmp_path: Path) -> None:
    def digest(copied: bool = False) -> str:
        task = Task("a", str(file), training_records(1))
        data = CVITDataModule([task], check_ahead=10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data._source.training(task)
        source = pickle.loads(pickle.dumps(data._source)) if copied else data._source
        return source.training_digest(task)

    for form in (lines, json.dumps):
        file.write_text(form([row(index) for index in range(20)]))
        before = digest()
        assert before == digest(copied=True)
        assert before.startswith("20 records, ") and before.endswith(", 10 of them by their bytes")
        file.write_text(form([row(index) for index in [*range(19), 21]]))
        assert digest() != before


def test_a_check_ahead_that_skips_is_refused() -> None:
    with pytest.raises(ValueError, match="check_ahead is 5 with bad_records='skip'"):
        CVITDataModule([Task("a", [], [])], check_ahead=5, bad_records="skip")
