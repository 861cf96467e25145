from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny_mllms import picture

from hpa_lightning.data import Record, read_records
from hpa_lightning.data.record import open_image, user_turn

CONVERSATION = [
    {"from": "human", "value": "What is this?\n<image>"},
    {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "Its colour?"},
    {"from": "gpt", "value": "red"},
]


def write(path: Path, rows: Any, lines: bool = False) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_llava_training_file_moves_the_image_to_the_front(tmp_path: Path, lines: bool) -> None:
    path = write(tmp_path / "train.json", [{"id": 3, "image": "a/b.png", "conversations": CONVERSATION}], lines)
    (record,) = read_records(path, tmp_path / "images")
    assert record.id == "3" and record.images == (str(tmp_path / "images" / "a/b.png"),)
    assert [message["role"] for message in record.messages] == ["user", "assistant", "user", "assistant"]
    assert record.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    assert record.prompt == "Its colour?"
    assert record.prompt_and_references()[1] == ("red",)


def test_missing_image_is_text_only_and_a_list_is_several(tmp_path: Path) -> None:
    plain = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    rows = [{"id": 0, "conversations": plain}, {"id": 1, "image": ["x.png", "y.png"], "conversations": plain}]
    text_only, two = read_records(write(tmp_path / "t.json", rows))
    assert text_only.images == () and len(text_only.messages[0]["content"]) == 1
    assert [part["type"] for part in two.messages[0]["content"]] == ["image", "image", "text"]
    assert two.images == (str(tmp_path / "x.png"), str(tmp_path / "y.png"))


def test_training_records_may_have_a_question_id(tmp_path: Path) -> None:
    """As UCIT's have, of VizWiz for instance."""
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    rows = [{"question_id": "00000012", "conversations": turns}, {"conversations": turns}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    assert [record.id for record in read_records(path)] == ["00000012", "train.json[1]"]


def test_question_file(tmp_path: Path) -> None:
    rows = [{"question_id": 9, "image": "x.png", "text": "<image>\nWhy?", "answer": ["so", "thus"]}]
    (record,) = read_records(write(tmp_path / "test.jsonl", rows, lines=True))
    assert (record.id, record.prompt, record.answers) == ("9", "Why?", ("so", "thus"))
    assert not record.ends_with_answer


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


def test_images_are_opened_as_rgb_or_named(tmp_path: Path) -> None:
    reference = np.asarray(picture(1))
    picture(1).save(tmp_path / "x.png")
    picture(1).convert("RGBA").save(tmp_path / "alpha.png")
    for image in (tmp_path / "x.png", str(tmp_path / "alpha.png"), picture(1), reference):
        opened = open_image(image, "r")
        assert isinstance(opened, Image.Image) and opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), reference)
    with pytest.raises(ValueError, match=r"t\.json\[4\]: image file '.*gone\.png' does not exist"):
        open_image(str(tmp_path / "gone.png"), "t.json[4]")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot be read"):
        open_image(tmp_path / "text.png", "r")
    with pytest.raises(ValueError, match=r"float64 and shape \(4, 4\); expected uint8"):
        open_image(np.zeros((4, 4)), "r")


def test_source_does_not_make_records_differ() -> None:
    assert Record("1", user_turn("a"), source="x[0]") == Record("1", user_turn("a"), source="y[7]")


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
