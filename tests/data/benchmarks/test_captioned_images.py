"""Captions in files of the exact upstream schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_json

from hpa_lightning.data import CaptionedImages


def dump(path: Path, value: Any) -> str:
    return str(write_json(path, value))


def captions(path: Path, **changes: Any) -> str:
    content = {
        "images": [{"id": 1, "file_name": "10.jpg"}, {"id": 2, "file_name": "20.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 2, "caption": "a dog"},
            {"id": 2, "image_id": 1, "caption": "a cat"},
            {"id": 3, "image_id": 2, "caption": "a brown dog"},
        ],
    }
    return dump(path, content | changes)


def test_captions_are_found_by_the_image(tmp_path: Path) -> None:
    rows = [
        {"question_id": 7, "image": "./Flickr30k/val/20.jpg", "text": "What is happening?", "answer": "a dog"},
        {"question_id": 8, "image": "./Flickr30k/val/10.jpg", "text": "What is happening?", "answer": "a cat"},
    ]
    questions = dump(tmp_path / "test_3000.json", rows)
    both = CaptionedImages(questions, captions(tmp_path / "val_coco_type_3000.json"), str(tmp_path / "datasets")).read()
    assert [record.answers for record in both] == [("a dog", "a brown dog"), ("a cat",)]
    assert both[0].images == (str(tmp_path / "datasets/Flickr30k/val/20.jpg"),) and not both[0].ends_with_answer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 1, "caption": "a cat"}]}, r"test.json\[0\].*no caption of an image '20.jpg'"),
        ({"annotations": [{"image_id": 9, "caption": "a cat"}]}, "not in COCO's caption format .KeyError: 9"),
        ({"annotations": [{"image_id": 1, "caption": 3}]}, "the caption 3 is no text"),
        ({"images": []}, "not in COCO's caption format"),
        ({"images": [{"id": 1, "file_name": "a/1.jpg"}, {"id": 2, "file_name": "b/1.jpg"}]}, "the same file_name"),
    ],
)
def test_broken_captions_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    questions = dump(tmp_path / "test.json", [{"question_id": 7, "image": "20.jpg", "text": "What?", "answer": "x"}])
    with pytest.raises(ValueError, match=message):
        CaptionedImages(questions, captions(tmp_path / "captions.json", **changes)).read()
