"""Keys of records: what counts as the same question."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.record_files import lines, row
from support.safety_files import encoded
from support.tiny_mllms import picture, training_records

from hpa_lightning.data import CVITDataModule, EncodedImage, EvaluationSet, Record, Replay, Task, open_records
from hpa_lightning.data.overlap import record_key
from hpa_lightning.data.record import assistant_turn, user_turn


def test_encoded_images_are_told_apart_by_their_bytes() -> None:
    records = [Record("x", harm.messages, (EncodedImage(data),)) for harm, data in _harms()]
    assert len({record_key(record) for record in records}) == 2


def _harms() -> list[tuple[Record, bytes]]:
    text = Record("x", ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},), ("p",))
    return [(text, encoded(1)), (text, encoded(2)), (text, encoded(1))]


def test_record_keys_compare_images_and_prompts() -> None:
    def key(text: str, *images: Any) -> str:
        return record_key(Record("x", user_turn(text, len(images)) + assistant_turn("a"), images))

    assert key("What?", picture(1)) == key(" What? ", picture(1))
    one, two = picture(1), picture(2)
    keys = [key("What?", one), key("What?", two), key("Why?", one), key("What?"), key("What?", "p"), key("What?", "q")]
    assert len(set(keys)) == 6


def test_pictures_in_memory_are_compared_as_they_are_seen() -> None:
    deep = Image.fromarray(np.array([[0, 30000], [40000, 65535]], np.uint16))
    other = Image.fromarray(np.array([[0, 40000], [40000, 65535]], np.uint16))
    keys = [record_key(Record("0", user_turn("a", 1), images=(image,))) for image in (deep, other)]
    assert keys[0] != keys[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(lines([row(index) for index in range(20)]))
    return path


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
    with pytest.raises(ValueError, match=r"of 24 records of the training data of task 'b' are also in the test data"):
        CVITDataModule([first, second], replay=Replay(20)).setup("fit")
