"""The demo's study is the archived one, and what its table is accompanied by."""

from __future__ import annotations

import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from support.stand_in_fits import cells_of

from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
from hpa_lightning.callbacks.allow_changes import callback_settings
from hpa_lightning.study import Cell, Store, demo_study, run_cells
from hpa_lightning.study.demo_study import report_cells
from hpa_lightning.study.study_file import read_study


def test_the_table_warns_of_a_model_that_says_nothing(
    stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, store = cells_of(tmp_path, {"mute": "run"}, [1]), Store(tmp_path / "store")
    run_cells(cells, store, say=lambda line: None)
    path = store.folder(cells[0]) / "results.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    counted = ({**event, "empty": 5} if event["event"] == "score" else event for event in events)
    path.write_text("".join(json.dumps(event) + "\n" for event in counted))
    table = report_cells(cells, tmp_path / "store", 1, "demo")
    told = "Warning: mute gives mostly empty answers (after a: a 5 of 5). It is broken rather than safe"
    assert "Empty %" in table and told in capsys.readouterr().out


def settings_of(callbacks: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """What callbacks of a configuration are set to, defaults included."""
    made = []
    for one in callbacks:
        init = {**one.get("init_args", {})}
        for name, kind in (("calibration", CalibrationSettings), ("retention", RetentionSettings)):
            if name in init:
                init[name] = kind(**init[name])
        callback = resolve_name(one["class_path"])(**init)
        made.append((one["class_path"], callback_settings(callback)))
    return made


def test_the_demo_runs_what_the_archived_study_ran() -> None:
    """But for what is kept of a run."""

    def calibrated(cell: Cell) -> list[tuple[str, dict[str, Any]]]:
        return settings_of(cell.config["trainer"]["callbacks"][3 if "six" in cell.condition else 2 :])

    study = read_study(Path(__file__).parents[2] / "studies" / "nano.yaml")
    archived = {cell.method: cell for cell in study.cells() if cell.condition == "clean" and cell.seed == 101}
    names = {
        "sequential": "sequential",
        "in-training": "hpa-in[p=72.0]",
        "post-training": "hpa-post[p_min=7.0, p_max=18.0]",
        "null-space": "hush-shares[energy=0.95, memory=0.7]",
    }
    for cell in demo_study.demo_study([101], list(names)).cells():
        other = archived[names[cell.method]]
        assert calibrated(cell) == calibrated(other)
        assert cell.config["data"] == other.config["data"] and cell.config["model"] == other.config["model"]
