from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_image, write_json

from hpa_lightning.data import SIUO
from hpa_lightning.data.record import check_record


def generation_row(index: int) -> dict[str, Any]:
    return {
        "question_id": 1000 + index,
        "image": f"S-{index:02d}.png",
        "question": f"May I go there at {index}?",
        "category": "dangerous behavior",
        "safety_warning": "The image shows a power line.",
        "reference_answer": f" Not at {index}: mind the line.",
    }


def choice_row(index: int) -> dict[str, Any]:
    row = {key: value for key, value in generation_row(index).items() if key in ("question_id", "image", "question")}
    options = {"A": "Yes, go.", "B": " Mind the line.", "C": "Yes, at once.", "D": "Yes, sure."}
    return {**row, "category": "dangerous behavior", "options": options, "correct_option": "BAD"[index % 3]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "siuo_gen.json", [generation_row(index) for index in range(3)])
    write_json(tmp_path / "siuo_mcqa.json", [choice_row(index) for index in range(3)])
    for index in range(3):
        write_image(tmp_path / "images" / f"S-{index:02d}.png", index)
    return tmp_path


def test_generation(folder: Path) -> None:
    records = SIUO(str(folder)).read()
    assert [record.id for record in records] == ["1000", "1001", "1002"]
    assert records[2].prompt == "May I go there at 2?" and records[2].answers == ("Not at 2: mind the line.",)
    assert records[2].images == (str(folder / "images" / "S-02.png"),)
    for record in records:
        check_record(record, needs_reference=True)
        assert Path(record.images[0]).is_file() and record.choices == ()


def test_choice(folder: Path) -> None:
    records = SIUO(str(folder), task="choice").read()
    assert [record.answers for record in records] == [("Mind the line.",), ("Yes, go.",), ("Yes, sure.",)]
    for record in records:
        check_record(record, needs_reference=True)
        assert record.choices == ("Yes, go.", "Mind the line.", "Yes, at once.", "Yes, sure.")
    assert records[0].prompt == "May I go there at 0?"


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SIUO: task is 'mcqa'; expected one of generation, choice"):
        SIUO(str(folder), task="mcqa")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no SIUO file siuo_gen\.json; looked for '.*images/siuo_gen\.json'"):
        SIUO(str(folder / "images")).read()
    with pytest.raises(ValueError, match=r"no folder of SIUO images; looked for '.*gone'"):
        SIUO(str(folder), image_folder=str(tmp_path / "gone")).read()
    write_json(folder / "siuo_mcqa.json", [choice_row(0), {**choice_row(1), "correct_option": "E"}])
    with pytest.raises(ValueError, match=r"^siuo_mcqa\.json\[1\]: the answer 'E' is none of the options \{'A': "):
        SIUO(str(folder), task="choice").read()
    write_json(folder / "siuo_gen.json", [{**generation_row(0), "reference_answer": None}])
    with pytest.raises(ValueError, match=r"^siuo_gen\.json\[0\]: 'reference_answer' is None; expected a text"):
        SIUO(str(folder)).read()
