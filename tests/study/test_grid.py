from __future__ import annotations

from pathlib import Path
from typing import Any

from support.study_files import STUDY, write

from hpa_lightning.study import read_study


def test_cells_are_whole_configurations(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    cells = {cell.key: cell for cell in study.cells()}
    cell = cells["dirty/sweep-p-2/seed_1"]
    assert (cell.method, cell.title, cell.condition, cell.seed) == ("sweep[p=2]", "Sweep at 2 %", "dirty", 1)
    assert cell.config_for(tmp_path / "here") == {
        "seed_everything": 1,
        "data": {"init_args": {"seed": 1, "steps": 7, "ratio": 0.1}},
        "trainer": {
            "callbacks": [
                {"class_path": "Base", "init_args": {"method": "Sweep at 2 %"}},
                {"class_path": "Method", "init_args": {"p": 2, "note": "p is 2"}},
            ],
            "logger": str(tmp_path / "here"),
        },
    }
    assert cells["clean/plain/seed_1"].config_for(tmp_path)["data"] == {"init_args": {"seed": 1, "steps": 3}}


def test_a_cell_of_two_groups_is_one_cell(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    keys = [cell.key for cell in study.cells()]
    assert len(keys) == len(set(keys)) == 2 * 3 * 2 + 1
    assert len(study.cells(["first"])) == 12
    assert [cell.key for cell in study.cells(["second"])] == ["clean/sweep-p-2/seed_2", "clean/sweep-p-2/seed_3"]
    assert [cell.seed for cell in study.cells(["first"])] == [1] * 6 + [2] * 6, "whole seeds first"


def test_the_digest_is_of_what_decides_the_outcome(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        return next(c for c in read_study(write(tmp_path, **changes)).cells() if c.key == "clean/plain/seed_1").digest

    before = digest()
    assert digest(methods={**STUDY["methods"], "plain": {"title": "Renamed"}}) == before
    changed = {"title": "Plain", "config": {"data": {"init_args": {"steps": 4}}}}
    assert digest(methods={**STUDY["methods"], "plain": changed}) != before
