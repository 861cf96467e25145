"""The store of a study: archives, notes, what another configuration left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.stand_in_fits import cells_of, starts, study_file

from hpa_lightning.checkpoints import newest_checkpoint
from hpa_lightning.cli import main
from hpa_lightning.study import Store, read_study, run_cells


def test_what_another_configuration_left_is_put_aside(stand_in: None, tmp_path: Path) -> None:
    """Its checkpoint above all: the changed cell must not go on from it."""
    store = Store(tmp_path / "store")
    (failing,) = cells_of(tmp_path, {"good": "fail"}, [1])
    for expected in (1, 2):  # the same configuration goes on in its folder
        assert run_cells([failing], store, say=lambda line: None) == [failing]
        assert starts(store, failing) == expected
    (store.folder(failing) / "last.ckpt").write_text("weights")
    (changed,) = cells_of(tmp_path, {"good": "run"}, [1])
    assert changed.key == failing.key and run_cells([changed], store, say=lambda line: None) == []
    assert starts(store, changed) == 1 and newest_checkpoint([store.folder(changed)]) == (None, [])
    aside = store.folder(changed).with_name("seed_1.other1")
    assert (aside / "last.ckpt").read_text() == "weights" and len((aside / "starts").read_text()) == 2
    assert [path.name for path in store.root.glob("*/*/*/cell.json")] == ["cell.json"]


def test_the_time_of_a_cut_off_cell_counts_with_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (cell,), (changed,) = cells_of(tmp_path, {"good": "run"}, [1]), cells_of(tmp_path, {"good": "half"}, [1])
    store.folder(cell).mkdir(parents=True)
    store.start(cell)
    assert (store.add_time(cell, 2.0), store.add_time(cell, 3.0)) == (2.0, 5.0)
    store.start(cell)
    assert store.add_time(cell, 1.0) == 6.0
    store.start(changed)
    assert store.add_time(changed, 1.0) == 1.0


def test_archive(stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, {"good": "run"}, [1, 2])
    store = Store(tmp_path / "store")
    run_cells(read_study(path).cells(), store, say=lambda line: None)
    arguments = [
        "study",
        "archive",
        str(path),
        "--store",
        str(tmp_path / "store"),
        "--output",
        str(tmp_path / "a.jsonl"),
    ]
    main(arguments)
    assert "2 cells" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert all(event["event"] != "retention" for line in lines for event in line["events"])
    assert lines[0]["events"][0]["command"] == "fit --config default/good/seed_1/config.in.yaml"

    elsewhere = Store(tmp_path / "elsewhere", [tmp_path / "a.jsonl"])
    for cell, summary in zip(read_study(path).cells(), (0.1, 0.2), strict=True):
        finished = elsewhere.finished(cell)
        assert finished is not None and finished.run.summary()["AP"] == pytest.approx(summary)
    lines_said: list[str] = []
    run_cells(read_study(path).cells(), elsewhere, say=lines_said.append)
    assert "2 finished; 0 to run" in lines_said[0] and not (tmp_path / "elsewhere").exists()
    assert elsewhere.archive(read_study(path).cells(), tmp_path / "b.jsonl") == 2
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()


def test_one_run_under_two_names_is_run_once(stand_in: None, tmp_path: Path) -> None:
    path = study_file(tmp_path, {"first": "run", "second": "run"}, [1])
    study, store = read_study(path), Store(tmp_path / "store")
    both = study.groups[0].cells
    assert [cell.method for cell in both] == ["first", "second"] and both[0].digest == both[1].digest
    assert run_cells(study.cells(), store, say=lambda line: None) == []
    assert [starts(store, cell) for cell in both] == [1, 0]
    assert store.archive(study.cells(), tmp_path / "a.jsonl") == 1
    for later in (store, Store(tmp_path / "store"), Store(tmp_path / "elsewhere", [tmp_path / "a.jsonl"])):
        found = [later.finished(cell) for cell in both]
        assert all(f is not None and f.run.summary()["AP"] == pytest.approx(0.1) for f in found)
    assert Store(tmp_path / "elsewhere", [tmp_path / "a.jsonl"]).archive([both[1]], tmp_path / "b.jsonl") == 1


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        Store(tmp_path, [tmp_path / "a.jsonl"])


def test_a_torn_note_of_a_start_is_told_and_the_cell_goes_on(stand_in: None, tmp_path: Path) -> None:
    (cell,), store = cells_of(tmp_path, {"good": "fail"}, [1]), Store(tmp_path / "store")
    run_cells([cell], store, say=lambda line: None)
    (store.folder(cell) / "started.json").write_text("")
    with pytest.warns(UserWarning, match=r"seed_1/started\.json.*seconds that the cell has taken so far are lost"):
        run_cells([cell], store, say=lambda line: None)
    assert starts(store, cell) == 2, "its configuration is the one that stands beside the note"
    (store.folder(cell) / "started.json").write_text("{")
    (changed,) = cells_of(tmp_path, {"good": "run"}, [1])
    with pytest.warns(UserWarning, match=r"started\.json"):
        run_cells([changed], store, say=lambda line: None)
    assert starts(store, changed) == 1 and (store.root / "default/good/seed_1.other1/starts").read_text() == "xx"


def test_a_run_that_was_killed_before_its_end_was_noted(stand_in: None, tmp_path: Path) -> None:
    (cell,), store = cells_of(tmp_path, {"good": "run"}, [1]), Store(tmp_path / "store")
    run_cells([cell], store, say=lambda line: None)
    (store.folder(cell) / "cell.json").unlink()
    lines: list[str] = []
    assert run_cells([cell], Store(tmp_path / "store"), say=lines.append) == []
    assert starts(store, cell) == 1 and any("had been finished" in line for line in lines)
    assert Store(tmp_path / "store").finished(cell) is not None


def test_a_store_s_files_lead_nowhere_else(stand_in: None, tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, {"one": "finish"}, [1])
    store = Store(tmp_path / "store")
    run_cells([cell], store, 1, lambda line: None)
    mark = store.folder(cell) / "cell.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "key": "../../elsewhere"}))
    with pytest.raises(ValueError, match=r"'../../elsewhere'; expected a path within"):
        Store(tmp_path / "store").finished(cell)
