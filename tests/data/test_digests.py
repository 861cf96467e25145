"""Digests of records: what is another dataset and what is the same."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.tiny_mllms import training_records, write_llava_json

from hpa_lightning.data import CVITDataModule, HarmfulInjection, Record, Replay, Task
from hpa_lightning.data.digests import records_digest, same_records
from hpa_lightning.data.record import assistant_turn, user_turn


def test_pictures_count_by_path_size_and_content(tmp_path: Path) -> None:
    def digest(*images: Any) -> str:
        return records_digest([Record("a", user_turn("?", len(images)) + assistant_turn("b"), images)])

    for name, size in (("one", 10), ("two", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x" * size)
        (tmp_path / name / "b.png").write_bytes(b"x" * 10)
    one, two = tmp_path / "one", tmp_path / "two"
    assert digest(one / "b.png", one / "b.png") == digest(two / "b.png", two / "b.png")
    assert digest(one / "a.png") != digest(two / "a.png") and digest(one / "a.png") != digest(one / "b.png")
    assert digest(one / "a.png", one / "b.png") != digest(one / "b.png", one / "a.png")
    picture = np.zeros((4, 4, 3), np.uint8)
    assert digest(picture) == digest(picture.copy()) != digest(picture + 1)


def test_one_letter_in_the_middle_of_much_text_is_noticed() -> None:
    text = "x" * 10_000
    records = [Record(str(i), user_turn(text) + assistant_turn("b")) for i in range(3_000)]
    digest = records_digest(records)
    records[1_500] = replace(records[1_500], messages=user_turn(text) + assistant_turn("c"))
    assert records_digest(records) != digest


def test_other_pictures_of_the_same_size_are_another_dataset(tmp_path: Path) -> None:
    """Bitmaps of one shape are files of one size."""
    paths = [tmp_path / "images" / f"{index}.bmp" for index in range(3)]
    paths[0].parent.mkdir()

    def digest(colour: int) -> str:
        for path in paths:
            Image.new("RGB", (64, 64), (colour, 0, 0)).save(path)
        return records_digest([Record("a", user_turn("?", 3), tuple(map(str, paths)))])

    first, times = digest(1), [path.stat().st_size for path in paths]
    assert digest(2) != first and [path.stat().st_size for path in paths] == times
    assert digest(1) == first  # the time of writing does not count


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
