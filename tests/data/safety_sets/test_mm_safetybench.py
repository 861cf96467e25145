from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.safety_files import MM_SAFETYBENCH_KINDS, write_json, write_scenario

from hpa_lightning.data import MMSafetyBench
from hpa_lightning.data.record import check_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenario(tmp_path, "06-Fraud", 2)
    write_scenario(tmp_path, "01-Illegal_Activitiy", 11)
    return tmp_path


@pytest.mark.parametrize("kind", MM_SAFETYBENCH_KINDS)
def test_images_go_with_their_questions(folder: Path, kind: Any) -> None:
    records = MMSafetyBench(str(folder), kind=kind).read()
    assert len(records) == 13
    assert [record.id for record in records[9:12]] == [
        "01-Illegal_Activitiy-9",
        "01-Illegal_Activitiy-10",
        "06-Fraud-0",
    ]
    assert records[-1].images == (str(folder / "imgs" / "06-Fraud" / kind / "1.jpg"),)
    expected = "The image shows a phrase of activity." if kind == "SD" else "The image shows a phrase."
    assert records[-1].prompt == f"{expected} Say more of 06-Fraud 1."
    for record in records:
        check_record(record)
        assert Path(record.images[0]).is_file() and not record.ends_with_answer and not record.answers


@pytest.mark.parametrize("asked", ["01-Illegal_Activitiy", "01-Illegal_Activity"])
@pytest.mark.parametrize("on_disk", ["01-Illegal_Activitiy", "01-Illegal_Activity"])
@pytest.mark.parametrize("of_images", ["01-Illegal_Activitiy", "01-Illegal_Activity"])
def test_both_spellings(tmp_path: Path, asked: str, on_disk: str, of_images: str) -> None:
    write_scenario(tmp_path, on_disk, 1, of_images)
    write_scenario(tmp_path, "06-Fraud", 1)
    records = MMSafetyBench(str(tmp_path), scenarios=["06-Fraud", asked]).read()
    assert [record.id for record in records] == ["06-Fraud-0", f"{on_disk}-0"]
    assert records[1].images == (str(tmp_path / "imgs" / of_images / "SD_TYPO" / "0.jpg"),)


def test_another_image_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "imgs").rename(tmp_path / "pictures")
    records = MMSafetyBench(str(folder), image_folder=str(tmp_path / "pictures"), scenarios=["06-Fraud"]).read()
    assert records[0].images == (str(tmp_path / "pictures" / "06-Fraud" / "SD_TYPO" / "0.jpg"),)


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MMSafetyBench: kind is 'TYPE'; expected one of SD, TYPO, SD_TYPO"):
        MMSafetyBench(str(folder), kind="TYPE")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no scenarios \['07-Sex'\] in '.*'; it has \['01-Illegal_Activity', '06-Fr"):
        MMSafetyBench(str(folder), scenarios=["07-Sex", "06-Fraud"]).read()
    with pytest.raises(ValueError, match=r"no folder of MM-SafetyBench questions; looked for '.*processed_questions'"):
        MMSafetyBench(str(folder / "imgs")).read()
    write_json(folder / "processed_questions" / "07-Sex.json", {"0": {"Question": "?"}})
    with pytest.raises(ValueError, match=r"no folder of SD images for 07-Sex\.json; looked for '.*imgs/07-Sex/SD'"):
        MMSafetyBench(str(folder), kind="SD").read()
    (folder / "imgs" / "07-Sex" / "SD").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^07-Sex\.json\['0'\]: 'Rephrased Question\(SD\)' is missing; the row has"):
        MMSafetyBench(str(folder), kind="SD").read()
    write_json(folder / "processed_questions" / "07-Sex.json", [1])
    with pytest.raises(ValueError, match=r"^07-Sex\.json holds a list; expected an object"):
        MMSafetyBench(str(folder), kind="SD").read()
    (folder / "processed_questions" / "07-Sex.json").write_text("{")
    with pytest.raises(ValueError, match=r"^07-Sex\.json: broken JSON at line 1"):
        MMSafetyBench(str(folder), kind="SD").read()
    (tmp_path / "empty" / "processed_questions").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no folder of MM-SafetyBench images; looked for '.*empty/imgs'"):
        MMSafetyBench(str(tmp_path / "empty")).read()
    (tmp_path / "empty" / "imgs").mkdir()
    with pytest.raises(ValueError, match=r"processed_questions' holds no questions"):
        MMSafetyBench(str(tmp_path / "empty")).read()
