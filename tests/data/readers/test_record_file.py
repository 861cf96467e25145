"""Records that stay in their file: the same ones as when all are read, in little memory, wherever they are taken."""

from __future__ import annotations

import codecs
import json
import pickle
import random
import tracemalloc
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_mllms import training_records, write_llava_json
from torch.utils.data import DataLoader

from hpa_lightning.data import CVITDataModule, EvaluationSet, HarmfulInjection, Record, Replay, Task, open_records
from hpa_lightning.data.batch_order import TaskBatchSampler, TaskLoader
from hpa_lightning.data.digests import records_digest, same_records
from hpa_lightning.data.readers import json_file, json_text
from hpa_lightning.data.readers.json_file import JsonFile
from hpa_lightning.data.readers.record_file import RecordFile
from hpa_lightning.data.record import assistant_turn, user_turn


def row(index: int, answer: str = "yes") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Is {index} a number? ä€😀"}, {"from": "gpt", "value": answer}]
    return {"id": index, "conversations": turns}


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(item, ensure_ascii=index % 2 == 0) + "\n" for index, item in enumerate(rows))


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_lists_are_what_json_makes_of_them(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whole lists and torn ones, read a few characters at a time: the same values, or the same complaint."""
    chunk = data.draw(st.integers(1, 40))
    values = data.draw(st.lists(JSON, max_size=5))
    text = "[" + json.dumps(values, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False)[1:]
    if data.draw(st.booleans()):
        start = data.draw(st.integers(1, len(text)))
        text = text[:start] + data.draw(st.sampled_from(["", ",", "]", '"', "1", " x"])) + text[start + 1 :]
    path = tmp_path_factory.mktemp("lists") / "t.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_CHUNK", chunk)
        file = JsonFile(path)
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            with pytest.raises(ValueError, match=r"t\.json"):
                list(file.rows())
        else:
            assert [value for _, value in file.rows()] == expected
            assert [file[index] for index in reversed(range(len(file)))] == expected[::-1]


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


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_MOST_OPEN", 3)
    files = []
    for index in range(10):
        (tmp_path / f"{index}.jsonl").write_text(lines([row(index), row(index + 100)]))
        files.append(open_records(tmp_path / f"{index}.jsonl"))
    assert [records[1].id for records in files] == [str(index + 100) for index in range(10)]
    assert len(json_file._OPEN) <= 3


def test_the_digest_is_that_of_version_0_1(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "x.png").write_bytes(b"12")
    (tmp_path / "b" / "y.png").write_bytes(b"123")
    y, x = tmp_path / "b" / "y.png", str(tmp_path / "x.png")
    records = [
        Record(
            str(index),
            user_turn(f"What is {index}? ä", len(images)) + assistant_turn("a cat"),
            images,
            choices=("a", "b") if index == 2 else (),
        )
        for index, images in enumerate([(y,), (x, y), (), (tmp_path / "gone.png",)])
    ]
    assert same_records(
        records_digest(records), "4 records, f9db19f3d978b89b"
    )  # by the code that held all paths in memory


def test_digests_are_those_of_records_in_memory(tmp_path: Path) -> None:
    train, harmful = tmp_path / "train.json", tmp_path / "harmful.json"
    images = tmp_path / "images"
    write_llava_json(train, training_records(6, name="t"), images / "own")
    write_llava_json(harmful, training_records(3, 5, name="h"), images)
    tasks = [Task("a", str(train), [], image_folder=str(images / "own")), Task("b", training_records(6), [])]
    injection = HarmfulInjection(str(harmful), 0.4, image_folder=str(images))
    data = CVITDataModule(tasks, harmful_injection=injection, replay=Replay(3))
    for task, size in zip(tasks, (8, 11), strict=True):
        mixed = data._source.training(task)
        assert len(mixed) == size
        assert data._source.training_digest(task) == records_digest(list(mixed))
        copy = pickle.loads(pickle.dumps(data._source))  # as another process gets it
        copy._digests.clear()
        assert copy.training_digest(task) == records_digest(list(mixed))


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


def test_overlap_is_found_in_files_and_in_what_is_mixed_in(file: Path, tmp_path: Path) -> None:
    def attack(index: int) -> EvaluationSet:
        return EvaluationSet("attack", "safety", list(open_records(file)[index : index + 1]))

    task = Task("a", str(file), training_records(1))
    with pytest.raises(ValueError, match=r"1 of 20 records of the training .* train\.jsonl\[7\] \(line 8\) = "):
        CVITDataModule([task], [attack(7)]).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CVITDataModule([task], [attack(15)], check_ahead=10).setup("fit")  # as it says
        with pytest.raises(ValueError, match=r"1 of 10 records of the training"):
            CVITDataModule([task], [attack(7)], check_ahead=10).setup("fit")
    other = tmp_path / "other.jsonl"
    other.write_text(lines([row(index) for index in range(100, 104)]))
    first, second = Task("a", str(file), training_records(1)), Task("b", str(other), list(open_records(file)[:20]))
    with pytest.raises(ValueError, match=r"of 24 records of the training data of task 'b' stand in the test data"):
        CVITDataModule([first, second], replay=Replay(20)).setup("fit")


def test_a_check_ahead_that_skips_is_refused() -> None:
    with pytest.raises(ValueError, match="check_ahead is 5 with bad_records='skip'"):
        CVITDataModule([Task("a", [], [])], check_ahead=5, bad_records="skip")


def test_batches_are_made_one_after_the_other() -> None:
    """A long epoch is not listed before its first batch, nor for the names of a batch."""
    records = training_records(3)
    loader = TaskLoader(records, TaskBatchSampler(3, 2, 0, "a", batches=10**12), lambda batch: {"n": len(batch)})
    assert [batch["n"] for batch in islice(loader, 4)] == [2, 2, 2, 2]
    assert len(loader.names(5)) == 2
