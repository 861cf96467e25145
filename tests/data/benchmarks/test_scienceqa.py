"""ScienceQA in files of the exact upstream schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_json

from hpa_lightning.data import ScienceQA
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


def test_a_choice_that_is_as_the_letter_of_another_one_is_no_reference(science: Path) -> None:
    problems = {"11": problem(0, image=None, choices=["b", "a", 3]), "5": problem(2, image=None, choices=["b", "a", 3])}
    dump(science / "problems.json", problems)
    assert [record.answers for record in ScienceQA(str(science), "test").read()] == [("A",), ("C", "3")]


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
