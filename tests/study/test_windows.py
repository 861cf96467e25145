"""Windows of blocks, and runs that start with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.study.study_file import expand_study
from hpa_lightning.study.windows import windows_study

EXAMPLE = Path(__file__).parents[2] / "examples" / "nano_visual_tuning.yaml"


def study(methods: dict[str, Any], wanted: list[str]) -> Any:
    group = {"title": "G", "methods": wanted, "seeds": [1, 2]}
    base = {"trainer": {}, "seed_everything": "${seed}"}
    return expand_study({"base": base, "methods": methods, "groups": {"g": group}}, "s.yaml")


def test_windows_of_any_model_and_fit() -> None:
    config = yaml.safe_load(EXAMPLE.read_text())
    found = windows_study(config, EXAMPLE, size=2, stride=1, seeds=[7, 8])
    cells = found.cells()
    assert {cell.method for cell in cells} == {
        "nothing",
        *(f"window[first={first}, last={first + 1}]" for first in range(1, 6)),  # the model has six blocks
    }
    cell = next(cell for cell in cells if cell.method.startswith("window[first=3") and cell.seed == 8)
    made = cell.config_for(Path("/store/c/m/s"))
    assert made["seed_everything"] == 8 and made["data"]["init_args"]["seed"] == 8
    assert made["trainer"]["callbacks"][-1]["init_args"] == {"layers": [3, 4]}
    assert made["trainer"]["logger"]["init_args"]["save_dir"] == "/store/c/m/s"
    assert made["model"] == config["model"]


def test_a_run_that_starts_with_another() -> None:
    methods: dict[str, Any] = {
        "first": {"title": "First", "config": {"lr": 1}},
        "second": {"title": "Second", "after": "first", "config": {"start": "${start}"}},
        "third": {"title": "Third", "after": "second", "config": {"start": "${start}/last.ckpt"}},
    }
    found = study(methods, ["third"])
    cells = found.cells()
    assert [(cell.method, cell.seed) for cell in cells] == [
        (method, seed) for seed in (1, 2) for method in ("first", "second", "third")
    ]
    made = cells[2].config_for(Path("/store/default/third/seed_1"))
    assert made["start"] == "/store/default/second/seed_1/last.ckpt"
    # Another first stage is another run of all that start with it.
    methods["first"]["config"]["lr"] = 2
    assert study(methods, ["third"]).cells()[2].digest != cells[2].digest
    methods["first"]["after"] = "third"
    with pytest.raises(ValueError, match="which itself comes after it"):
        study(methods, ["third"])
    methods["first"]["after"] = "zero"
    with pytest.raises(ValueError, match="expected a method without a grid"):
        study(methods, ["third"])
