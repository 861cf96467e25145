"""Keys and marks that no reader takes are told."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from support.chat_files import MESSAGES, YES, contents, read, text
from support.tiny_mllms import evaluation_records

from hpa_lightning.data import CVITDataModule, Task
from hpa_lightning.data.checking import check_stream, summary
from hpa_lightning.data.readers import DataWarning, read_records


def test_unknown_keys_are_told_once_for_a_file_with_counts(tmp_path: Path) -> None:
    rows = [{"messages": MESSAGES[:2], "tools": "[]", "source": None, "extra": []}] * 3
    rows += [{"messages": [{**MESSAGES[0], "name": "Ann"}, {**MESSAGES[1], "name": "Bob"}], "model": "x"}] * 2
    with pytest.warns(DataWarning) as told:
        read(tmp_path, *rows)
    (warning,) = told
    assert str(warning.message) == (
        "t.json: unknown key 'tools' in 3 of 5 records, unknown key 'messages[].name' in 2 of 5 records, "
        "unknown key 'model' in 2 of 5 records; not read."
    )
    (part, *_) = parts = check_stream(CVITDataModule([Task("a", str(tmp_path / "t.json"), evaluation_records(2))]))
    assert not part.problems and "unknown key 'tools' in 3 of 5 records" in summary(parts)


def test_marks_of_media_without_media_are_told(tmp_path: Path) -> None:
    """A page's source may hold them; what is no path between two tags is text, and so are answers."""
    page = '<video controls>\n<source src="a.mp4">\n</video> <img src="a.png"> <img></img> a <b>bold</b> word'
    rows = [{"messages": [{"role": "user", "content": question}, YES]} for question in ("<video>What?", page, "a")]
    rows.append({"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "<audio>"}]})
    with pytest.warns(DataWarning) as told:
        records = read(tmp_path, *rows)
    assert [str(item.message) for item in told] == ["t.json: mark <video> in the text in 1 of 4 records; not read."]
    assert contents(records[1])[0][1] == [text(page)]


def test_marks_of_images_that_other_programs_write_are_told(tmp_path: Path) -> None:
    def row(question: Any, images: int) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, YES], "images": ["a.png"] * images}

    marks = ["<image 1> or <image 2>?", "<image_1>?", "<IMAGE>?", "<|image_pad|>?", "<ImageHere>?", "<IMG_CONTEXT>?"]
    plain = ["<image> and <image_1>?", '<img src="a"> <img></img> <picture> <|im_start|>?', "An image 1?"]
    rows = [row(question, 1 + question.count("2")) for question in marks]
    rows += [row(question, 1) for question in plain]
    rows += [row(question, 0) for question in marks]  # there is nothing to place
    rows.append(row([{"type": "image"}, {"type": "text", "text": "<image_1>?"}], 1))
    with pytest.warns(DataWarning) as told:
        records = read(tmp_path, *rows)
    assert contents(records[1])[0][1][-1] == text("<image_1>?")
    (warning,) = told
    counts = [
        f"mark {mark} (expected: <image>) in the text in 1 of {len(rows)} records"
        for mark in ("<IMAGE>", "<IMG_CONTEXT>", "<ImageHere>", "<image N>", "<image_N>", "<|image_pad|>")
    ]
    assert str(warning.message) == f"t.json: {', '.join(counts)}; not read."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question_id": NaN, "text": "a", "answer": "b"}', "the id is nan"),
        ('{"question_id": 1, "text": "a", "answer": NaN}', "the answer is nan"),
        ('{"question_id": 1, "text": "a", "answer": ["b", -Infinity]}', "the answer is .'b', -inf."),
        ('{"question_id": 1, "text": "a", "answer": true}', "the answer is True"),
        ('{"question_id": 1, "text": "a", "answer": "\\ud83d"}', "half of a surrogate pair"),
        ('{"question_id": "\\ud83d", "text": "a", "answer": "b"}', "half of a surrogate pair"),
        ('{"question_id": 1, "text": "a", "answer": "b", "answer": "c"}', "an object has the key 'answer' twice"),
    ],
)
def test_what_is_no_answer_is_no_reference(row: str, message: str, tmp_path: Path) -> None:
    """pandas writes NaN where a table has nothing; it was the reference "nan"."""
    for name, content in (("t.jsonl", row), ("t.json", f"[{row}]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=f"^{name}.*{message}"):
            read_records(tmp_path / name)


def test_a_list_that_is_written_as_a_text_is_told(tmp_path: Path) -> None:
    """Tables hold lists so; a box is no such list."""
    answers = ["['yes', \"it's\"]", '["no"]', "[0.1, 0.2, 0.3, 0.4]", "['a', b]", ["yes", "no"], "[]"]
    rows = [{"question_id": number, "text": "a", "answer": answer} for number, answer in enumerate(answers)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.warns(DataWarning, match=r"t.json: 2 answers are a list .* the first is .*yes.* of t.json.0.:") as told:
        records = read_records(tmp_path / "t.json")
    assert len(told) == 1 and records[1].answers == ('["no"]',)


def test_whole_numbers_as_a_table_with_empty_cells_writes_them_are_told(tmp_path: Path) -> None:
    """pandas makes a column of whole numbers one of floats where a cell is empty; a box has such numbers by right."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"question_id": [1, 2, 3], "text": ["a"] * 3, "answer": [3, None, 12]})
    table.dropna().to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    with pytest.warns(
        DataWarning, match=r"t.jsonl: 2 answers are whole numbers .* the first is '3.0' of t.jsonl"
    ) as told:
        records = read_records(tmp_path / "t.jsonl")
    assert len(told) == 1 and [record.answers for record in records] == [("3.0",), ("12.0",)]
    box = {"question_id": 1, "text": "a", "answer_bbox": [0.0, 0.5, 1.0, 1.0]}
    (tmp_path / "box.json").write_text(json.dumps([box, {"question_id": 2, "text": "a", "answer": 2.5}]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_records(tmp_path / "box.json")


def test_numbers_are_answers(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question_id": 1, "text": "a", "answer": [3, 2.5, %s]}' % ("9" * 400))
    assert read_records(tmp_path / "t.jsonl")[0].answers == ("3", "2.5", "9" * 400)


def test_addresses_that_are_one_file_are_told(tmp_path: Path) -> None:
    for name in ("1.png", "b.org/y/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    addresses = ["https://a.org/x/1.png", "https://b.org/y/1.png", "https://b.org/y/2.png", "http://a.org/x/1.png"]
    rows = [{"messages": MESSAGES[:2], "images": [address]} for address in addresses]
    with pytest.warns(DataWarning) as told:
        records = read(tmp_path, *rows)
    assert [Path(record.images[0]).relative_to(tmp_path).as_posix() for record in records] == [
        "1.png",
        "1.png",
        "b.org/y/2.png",
        "1.png",
    ]
    (warning,) = told
    assert "the images 'a.org/x/1.png' and 'b.org/y/1.png' are one file here, " in str(warning.message)
