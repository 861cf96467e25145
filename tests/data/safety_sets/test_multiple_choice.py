from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_json

from hpa_lightning.data import MultipleChoice
from hpa_lightning.data.record import check_record
from hpa_lightning.data.safety_sets.multiple_choice import right_choice

OPTIONS = ["Go on.", "Mind the line.", "A"]


@pytest.mark.parametrize(
    ("answer", "index"),
    [(0, 0), (1, 1), ("B", 1), (" B ", 1), ("Mind the line.", 1), ("C", 2), (2, 2)],
)
def test_answers_by_index_letter_or_text(tmp_path: Path, answer: Any, index: int) -> None:
    row = {"id": 7, "image": "a.png", "question": "What now?", "options": OPTIONS, "answer": answer}
    (record,) = MultipleChoice(str(write_json(tmp_path / "q.json", [row]))).read()
    check_record(record, needs_reference=True)
    assert (record.id, record.prompt) == ("7", "What now?") and record.images == (str(tmp_path / "a.png"),)
    assert record.choices == tuple(OPTIONS) and record.answers == (OPTIONS[index],)


def test_lines_without_images_and_lettered_choices(tmp_path: Path) -> None:
    rows = [
        {"question": "1?", "choices": {"A": "yes", "B": " no"}, "answer": "B"},
        {"question": "2?", "choices": {"1": "yes", "2": "no"}, "answer": "1"},
        {"question": "3?", "image": ["a.png", "b.png"], "choices": ["yes", "no"], "answer": "no"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    records = MultipleChoice(str(path), image_folder=str(tmp_path / "images")).read()
    assert [record.answers for record in records] == [("no",), ("yes",), ("no",)]
    assert [len(record.images) for record in records] == [0, 0, 2]
    assert records[2].images[1] == str(tmp_path / "images" / "b.png") and records[0].id == "q.jsonl[0] (line 1)"


def test_ch3ef(tmp_path: Path) -> None:
    items = [
        {
            "id": 3,
            "image": ["Harmless_images/3.png"],
            "query": "Is it right?",
            "options": ["No.", "Yes."],
            "source": "x",
        }
    ]
    path = write_json(tmp_path / "meta_file" / "Harmless.json", {"meta_data": {}, "items": items})
    (record,) = MultipleChoice(str(path), image_folder=str(tmp_path), first_is_right=True).read()
    assert record.prompt == "Is it right?" and record.answers == ("No.",) and record.choices == ("No.", "Yes.")
    assert record.images == (str(tmp_path / "Harmless_images" / "3.png"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, r"the answer 3 is none of the options"),
        ({"answer": -1}, r"the answer -1 is none of"),
        ({"answer": True}, r"the answer True is none of"),
        ({"answer": "1"}, r"the answer '1' is none of .* expected an index from 0 on, a letter or a text"),
        ({"answer": None}, r"the answer None is none of"),
        ({"answer": "A"}, r"the answer 'A' is two of the options"),
        ({"answer": ""}, r"the answer '' is none of the options"),
        ({"answer": "AB"}, r"the answer 'AB' is none of the options"),
        ({"options": ["one"]}, r"the options are \['one'\]; expected two or more texts"),
        ({"options": ["one", " "]}, r"the options are \['one', ' '\]; expected"),
        ({"options": None}, r"the options are None"),
        ({"question": None}, r"'question' is None; expected a text"),
        ({"image": 7}, r"the image is '7'; expected a path"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"question": "What now?", "options": OPTIONS, "answer": "B"}
    path = write_json(tmp_path / "q.json", [good, good | change])
    with pytest.raises(ValueError, match=r"^q\.json\[1\]: .*" + message):
        MultipleChoice(str(path)).read()


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of multiple choice; looked for '.*gone\.json'"):
        MultipleChoice(str(tmp_path / "gone.json")).read()
    with pytest.raises(ValueError, match=r"^q\.json holds an object without a list `items`"):
        MultipleChoice(str(write_json(tmp_path / "q.json", {"rows": []}))).read()
    with pytest.raises(ValueError, match=r"^q\.json\[0\]: a int; expected an object"):
        MultipleChoice(str(write_json(tmp_path / "q.json", [1]))).read()
    row = {"question": "?", "options": ["a", "b"], "answer": "a"}
    with pytest.raises(ValueError, match=r"^q\.json\[0\]: the answer is 'a'; with first_is_right=True expected none"):
        MultipleChoice(str(write_json(tmp_path / "q.json", [row])), first_is_right=True).read()


def test_the_same_text_twice_is_one_answer() -> None:
    assert right_choice({"A": "no", "B": "no"}, "B", "r") == (("no", "no"), "no")
