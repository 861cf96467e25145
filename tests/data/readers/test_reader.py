"""Files of records: chat files and tables, broken records and files by name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.record_files import CONVERSATION, write
from support.safety_files import write_json

from hpa_lightning.data import read_records
from hpa_lightning.data.record import open_image


def test_chat_file(tmp_path: Path) -> None:
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
    rows = [{"messages": [user, {"role": "assistant", "content": "so"}], "images": ["x.png"]}]
    (record,) = read_records(write(tmp_path / "chat.json", rows))
    assert record.messages[1]["content"] == [{"type": "text", "text": "so"}]
    assert record.images == (str(tmp_path / "x.png"),)


GOOD = {"id": 0, "conversations": CONVERSATION[:2], "image": "x.png"}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"id": 1, "image": "x.png", "conversations": CONVERSATION[1:]}, r"user and assistant in turn, user first"),
        ({"id": 1, "image": "x.png", "conversations": [CONVERSATION[0], {"from": "bot", "value": "x"}]}, r"turn 1"),
        ({"id": 1, "image": "x.png", "conversations": []}, r"expected a list of turns"),
        ({"id": 1, "image": 7, "conversations": CONVERSATION}, r"expected a path"),
        ({"id": 1, "conversations": CONVERSATION}, r"1 marks <image> in the text but 0 images"),
        ({"id": 1, "image": "x", "conversations": [CONVERSATION[0], {"from": "gpt", "value": " "}]}, r"is empty"),
        ("a string", r"expected an object"),
    ],
)
def test_a_broken_record_is_named_by_file_index_and_line(tmp_path: Path, broken: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^train\.json\[1\]: .*" + message):
        read_records(write(tmp_path / "train.json", [GOOD, broken]))
    path = write(tmp_path / "train.jsonl", [GOOD, broken], lines=True)
    with pytest.raises(ValueError, match=r"^train\.jsonl\[1\] \(line 2\): .*" + message):
        read_records(path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": 1,')
    with pytest.raises(ValueError, match=r"a\.json: broken JSON at line 1"):
        read_records(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_text(json.dumps(GOOD) + "\n\n{oops}\n")
    with pytest.raises(ValueError, match=r"b\.jsonl\[1\] \(line 3\): broken JSON"):
        read_records(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"unknown format, the record has \['prompt'\]; expected"):
        read_records(write(tmp_path / "c.json", [{"prompt": "x"}]))
    with pytest.raises(ValueError, match=r"holds no records"):
        read_records(write(tmp_path / "d.json", []))
    with pytest.raises(ValueError, match=r"no data file"):
        read_records(tmp_path / "e.json")


def test_chat_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    """Images in a column as bytes, beside messages whose parts all have the same keys."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    encoded = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 0, 0)).save(encoded, "PNG")
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What colour?"}]
    answer = [{"type": "text", "text": "red"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    rows = [{"id": "7", "messages": messages, "images": [{"bytes": encoded.getvalue(), "path": None}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (record,) = read_records(tmp_path / "train.parquet")
    assert (record.id, record.prompt, len(record.images)) == ("7", "What colour?", 1)
    assert open_image(record.images[0], record.where).getpixel((2, 2)) == (200, 0, 0)


def test_other_formats_have_no_choices(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "text": "?", "answer": "a", "image": "x.png"}]
    (record,) = read_records(write_json(tmp_path / "t.json", rows))
    assert record.choices == () and record.where == "t.json[0]" and record.images == (str(tmp_path / "x.png"),)
