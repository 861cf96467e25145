"""ScienceQA, TextVQA and captions in files of the exact upstream schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_json

from hpa_lightning.data import CaptionedImages, ScienceQA, TextVQA
from hpa_lightning.data.record import message_text


def dump(path: Path, value: Any) -> str:
    return str(write_json(path, value))


def problem(answer: Any = 1, split: str = "test", **changes: Any) -> dict[str, Any]:
    """All fields of upstream's problems.json."""
    return {
        "question": "Which of these is farthest north?",
        "choices": ["Ohio", "Maine", "Texas"],
        "answer": answer,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map",
        "lecture": "Maps have four cardinal directions.",
        "solution": "Maine is.",
        "split": split,
    } | changes


@pytest.fixture
def science(tmp_path: Path) -> Path:
    problems = {
        "5": problem(),
        "11": problem(0, image=None, hint=" Look at the passage. "),
        "3": problem(2, split="train"),
    }
    dump(tmp_path / "problems.json", problems)
    splits = {"train": ["3"], "val": [], "test": ["11", "5"], "minitest": ["5"], "trainval": ["3"]}
    dump(tmp_path / "pid_splits.json", splits)
    (tmp_path / "images").mkdir()
    return tmp_path


def test_science_questions_with_and_without_an_image(science: Path) -> None:
    text_only, with_image = ScienceQA(str(science), "test").read()
    assert text_only.prompt == (
        "Context: Look at the passage.\nWhich of these is farthest north?\nA. Ohio\nB. Maine\nC. Texas\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert text_only.images == () and text_only.answers == ("A", "Ohio")
    assert with_image.prompt.startswith("Which of these") and with_image.id == "5"
    assert with_image.images == (str(science / "images/test/5/image.png"),)
    assert message_text(with_image.messages[-1]) == "B" and with_image.prompt_and_references()[1] == ("B", "Maine")
    assert [record.id for record in ScienceQA(str(science), "test", with_image=True).read()] == ["5"]
    assert [record.id for record in ScienceQA(str(science), "test", with_image=False).read()] == ["11"]
    # The mini splits' images lie with those of their own split.
    (mini,) = ScienceQA(str(science), "minitest", image_folder=str(science / "images")).read()
    (train,) = ScienceQA(str(science), "trainval").read()
    assert mini.images == with_image.images and train.images == (str(science / "images/train/3/image.png"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, r"problems.json\['5'\]: the answer is 3; expected the number"),
        ({"answer": "B"}, "the answer is 'B'"),
        ({"answer": True}, "the answer is True"),
        ({"choices": ["one"]}, "the choices are \\['one'\\]"),
        ({"question": " "}, "'question' is ' '"),
    ],
)
def test_broken_science_problems_are_named(science: Path, changes: dict[str, Any], message: str) -> None:
    dump(science / "problems.json", {"5": problem(**changes), "11": problem()})
    with pytest.raises(ValueError, match=message):
        ScienceQA(str(science), "test").read()


def test_science_files_that_do_not_fit(science: Path) -> None:
    with pytest.raises(ValueError, match="no split 'dev'; it has train, val, test"):
        ScienceQA(str(science), "dev").read()
    dump(science / "problems.json", {"5": problem()})
    with pytest.raises(ValueError, match=r"problems.json\['11'\] is None, and pid_splits.json names it"):
        ScienceQA(str(science), "test").read()
    (science / "pid_splits.json").unlink()
    with pytest.raises(ValueError, match=r"there is no ScienceQA file pid_splits\.json"):
        ScienceQA(str(science), "test").read()


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
