"""Archives: one result of a run, and nothing lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.stand_in_fits import cells_of, study_file

from hpa_lightning.cli import main
from hpa_lightning.study import Store, read_study, run_cells


def archived(folder: Path, name: str = "a.jsonl", seeds: tuple[int, ...] = (1,)) -> Path:
    store = Store(folder / "store")
    cells = cells_of(folder, {"good": "run"}, list(seeds))
    run_cells(cells, store, 1, say=lambda line: None)
    store.archive(cells, folder / name)
    return folder / name


def changed(line: str, score: float | None = None, **fields: Any) -> str:
    entry = json.loads(line) | fields
    for event in entry["events"]:
        if event["event"] == "score" and score is not None:
            event["score"] = score
    return json.dumps(entry) + "\n"


def test_two_results_of_one_run_are_refused(stand_in: None, tmp_path: Path) -> None:
    first = archived(tmp_path)
    second = tmp_path / "b.jsonl"
    second.write_text(changed(first.read_text(), 0.9))
    with pytest.raises(ValueError, match=r"a\.jsonl and .*b\.jsonl have different results of default/good/seed_1 for"):
        Store(tmp_path, [first, second])
    second.write_text(first.read_text() + changed(first.read_text(), 0.9))
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1 and .*b\.jsonl, line 2 have different results"):
        Store(tmp_path, [second])
    second.write_text(first.read_text() * 2)
    Store(tmp_path, [first, second])


def test_an_archive_keeps_what_it_holds(stand_in: None, tmp_path: Path) -> None:
    """A cell of an older configuration stays beside the new one, and each is found by its own study."""
    path = archived(tmp_path)
    (now,) = cells_of(tmp_path, {"good": "run"}, [1])
    before = changed(path.read_text(), 0.9, digest="0" * 16)
    path.write_text(before)
    assert Store(tmp_path / "store").archive([now], path) == 2
    assert before in path.read_text().splitlines(keepends=True)
    for lines in (path.read_text(), "".join(reversed(path.read_text().splitlines(keepends=True)))):
        path.write_text(lines)
        finished = Store(tmp_path / "elsewhere", [path]).finished(now)
        assert finished is not None and finished.run.summary()["AP"] == pytest.approx(0.1)
    path.write_text(before)
    with pytest.raises(ValueError, match="made with another configuration"):
        Store(tmp_path / "elsewhere", [path]).finished(now)


def test_other_results_of_the_same_run_do_not_take_the_place_of_archived_ones(stand_in: None, tmp_path: Path) -> None:
    path = archived(tmp_path)
    (cell,) = cells_of(tmp_path, {"good": "run"}, [1])
    held = changed(path.read_text(), 0.9)
    path.write_text(held)
    with pytest.raises(ValueError, match=r"a\.jsonl and the store have different results .* remove the other's line"):
        Store(tmp_path / "store").archive([cell], path)
    assert path.read_text() == held


def test_an_archive_of_another_study_is_told(stand_in: None, tmp_path: Path) -> None:
    path = archived(tmp_path, seeds=(1, 2))
    study = study_file(tmp_path, {"renamed": "half"}, [1, 2])
    with pytest.warns(
        UserWarning, match=r"none of the 2 cells of .*a\.jsonl is of the study 'study', such as default/g"
    ):
        main(["study", "status", str(study), "--store", str(tmp_path / "new"), "--archive", str(path)])


def test_an_archive_with_a_cell_of_the_study_is_taken_without_a_word(
    stand_in: None, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = archived(tmp_path, seeds=(1, 2))
    study = study_file(tmp_path, {"good": "run"}, [2, 3])
    main(["study", "status", str(study), "--store", str(tmp_path / "new"), "--archive", str(path)])
    assert not [warning for warning in recwarn if "is of the study" in str(warning.message)]


def test_a_run_without_a_number_is_not_finished_anywhere(
    stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archived(tmp_path)
    line = json.loads(path.read_text())
    for event in line["events"]:
        if event["event"] == "score":
            event["score"] = None
    path.write_text(json.dumps(line) + "\n")
    study = study_file(tmp_path, {"good": "run"}, [1])
    arguments = [str(study), "--store", str(tmp_path / "new"), "--archive", str(path)]
    main(["study", "status", *arguments])
    reason = "(run, but the score on a after task 0 ('a') is not a number)"
    assert capsys.readouterr().out == f"to run    default/good/seed_1 {reason}\n"
    (cell,) = read_study(study).cells()
    assert Store(tmp_path / "new", [path]).finished(cell) is None
    main(["study", "report", *arguments, "--output", str(tmp_path / "page")])
    assert f"good, default, seed 1 {reason}" in (tmp_path / "page" / "results.md").read_text()
