"""Runs that start with another one, which goes by several names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.stand_in_fits import starts, study_file

from hpa_lightning.study import Store, Study, read_study, run_cells


def study(folder: Path) -> Study:
    """`sequential` and `plain` are one run; `later` starts with `plain`."""
    path = study_file(folder, {"sequential": "run", "plain": "run", "later": "run"}, [1])
    content = yaml.safe_load(path.read_text())
    content["methods"]["later"] |= {"after": "plain", "config": {"from": "${start}"}}
    groups = content["groups"]
    groups["all"]["methods"] = ["sequential", "later"]
    groups["alone"] = {"title": "Alone", "methods": ["plain", "later"], "seeds": [1]}
    path.write_text(yaml.safe_dump(content))
    return read_study(path)


def start_of(store: Store, cells: list) -> str:
    (later,) = (cell for cell in cells if cell.method == "later")
    assert starts(store, later) == 1
    return yaml.safe_load((store.folder(later) / "config.in.yaml").read_text())["from"]


def test_the_first_name_stands_for_the_run_that_others_start_with(stand_in: None, tmp_path: Path) -> None:
    cells, store = study(tmp_path).cells(["all"]), Store(tmp_path / "store")
    assert [cell.method for cell in cells] == ["sequential", "later"]
    assert cells[1].digest == study(tmp_path).cells(["alone"])[1].digest, "whatever its start is called"
    assert run_cells(cells, store, 1, say=lambda line: None) == []
    assert start_of(store, cells) == str(store.folder(cells[0])) and store.folder(cells[0]).is_dir()


def test_a_start_is_found_under_the_name_that_it_was_run_under(stand_in: None, tmp_path: Path) -> None:
    whole = study(tmp_path)
    plain, later = whole.cells(["alone"])
    run_cells([plain], Store(tmp_path / "store"), 1, say=lambda line: None)
    store, cells = Store(tmp_path / "store"), whole.cells(["all"])
    assert run_cells(cells, store, 1, say=lambda line: None) == []
    assert start_of(store, cells) == str(store.folder(plain)) and starts(store, cells[0]) == 0
    assert Store(tmp_path / "store").finished(later) is not None


def test_where_a_start_fails_under_one_name_what_starts_with_it_fails(stand_in: None, tmp_path: Path) -> None:
    path = study_file(tmp_path, {"sequential": "fail", "plain": "fail", "later": "run"}, [1])
    content = yaml.safe_load(path.read_text())
    content["methods"]["later"] |= {"after": "plain", "config": {"from": "${start}"}}
    path.write_text(yaml.safe_dump(content))
    sequential, _, later = read_study(path).groups[0].cells
    assert run_cells([sequential, later], Store(tmp_path / "store"), 1, say=lambda line: None) == [sequential, later]


def test_a_start_that_nobody_runs_is_told_before_anything_runs(stand_in: None, tmp_path: Path) -> None:
    later = study(tmp_path).cells(["all"])[1]
    with pytest.raises(ValueError, match=r"default/sequential/seed_1, which another cell starts with, is neither"):
        run_cells([later], Store(tmp_path / "store"), 1, say=lambda line: None)
    assert not (tmp_path / "store").exists()
