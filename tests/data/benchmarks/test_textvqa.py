"""TextVQA in files of the exact upstream schema, and of CoIN and LLaVA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_json

from hpa_lightning.data import TextVQA


def dump(path: Path, value: Any) -> str:
    return str(write_json(path, value))


def annotation(question_id: int, image: str, question: str, answers: list[str] | None) -> dict[str, Any]:
    row = {
        "question": question,
        "image_id": image,
        "image_classes": ["Sign"],
        "flickr_original_url": "https://example.org/1.jpg",
        "flickr_300k_url": "https://example.org/2.jpg",
        "image_width": 1024,
        "image_height": 768,
        "question_tokens": question.rstrip("?").split(),
        "question_id": question_id,
        "set_name": "val",
    }
    return row if answers is None else {**row, "answers": answers}


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    rows = [
        annotation(34602, "003a8ae2ef43b901", "What is the brand?", ["dakota"] * 7 + ["dakota digital"] * 3),
        annotation(34603, "003a8ae2ef43b901", "What year is it?", ["2008"] * 10),
    ]
    content = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}
    return dump(tmp_path / "TextVQA_0.5.1_val.json", content)


def test_text_questions_of_the_annotations(annotations: str, tmp_path: Path) -> None:
    first, second = TextVQA(annotations).read()
    assert first.prompt == "What is the brand?\nAnswer the question using a single word or phrase."
    assert first.images == (str(tmp_path / "train_images/003a8ae2ef43b901.jpg"),)
    assert first.id == "34602" and len(first.answers) == 10 and second.answers == ("2008",) * 10
    elsewhere = TextVQA(annotations, image_folder=str(tmp_path / "other"), instruction="Short answer:").read()[0]
    assert elsewhere.images == (str(tmp_path / "other/003a8ae2ef43b901.jpg"),)
    assert elsewhere.prompt == "What is the brand?\nShort answer:"


def test_text_questions_of_coin_and_of_llava(annotations: str, tmp_path: Path) -> None:
    """CoIN's file has the annotations' question ids; LLaVA's has the image's id in their place."""
    instruction = "Answer the question using a single word or phrase."
    coin = [
        {"question_id": 34603, "image": "./TextVQA/train_images/003a8ae2ef43b901.jpg", "text": f"Q?\n{instruction}"}
    ]
    (record,) = TextVQA(annotations, dump(tmp_path / "val.json", coin), str(tmp_path)).read()
    assert record.answers == ("2008",) * 10 and record.prompt == f"Q?\n{instruction}"
    assert record.images == (str(tmp_path / "TextVQA/train_images/003a8ae2ef43b901.jpg"),)
    row = {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "category": "default"}
    texts = [
        f"What is the brand?\nReference OCR token: DAKOTA, 2008\n{instruction}",
        f"Reference OCR token: What year\nwhat YEAR is  it?\n{instruction}",
    ]
    path = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text("\n".join(json.dumps({**row, "text": text}) for text in texts))
    brand, year = TextVQA(annotations, str(path)).read()
    assert brand.answers.count("dakota") == 7 and brand.prompt == texts[0]
    assert year.answers == ("2008",) * 10


def test_text_questions_that_do_not_fit(annotations: str, tmp_path: Path) -> None:
    other = dump(tmp_path / "other.json", [{"question_id": 1, "image": "b.jpg", "text": "What?", "answer": "x"}])
    with pytest.raises(ValueError, match="neither question_id '1' nor the question 'What\\?' for image 'b'"):
        TextVQA(annotations, other).read()
    hidden = dump(tmp_path / "test.json", {"data": [annotation(1, "a", "What?", None)]})
    with pytest.raises(ValueError, match=r"test.json: data\[0\]: the answers are None.*Test splits have none"):
        TextVQA(hidden).read()
    with pytest.raises(ValueError, match="no list under 'data'"):
        TextVQA(other).read()
