"""LLaVA's files: the image's place, several images, ids, question files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.record_files import CONVERSATION, write

from hpa_lightning.data import read_records


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
