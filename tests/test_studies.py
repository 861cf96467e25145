"""The studies beside the package run; here a small one, twice."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from pathlib import Path

import pytest

from hpa_lightning import demo
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.modules import NanoModule

STUDY = Path(__file__).parent.parent / "studies" / "one_step.py"


@pytest.fixture(scope="module")
def one_step():
    spec = importlib.util.spec_from_file_location("one_step", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variants_are_measured_once_and_training_goes_on_from_the_whole_update(
    one_step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "variants.jsonl"
    monkeypatch.setattr(one_step, "SAFETY_SAMPLES", (8, 16))
    small = {"steps": 2, "train_size": 32, "calibration_size": 8, "test_size": 4, "task_order": ["driving", "digits"]}
    monkeypatch.setattr(demo, "NanoDataModule", partial(NanoDataModule, **small))
    weights = []
    for tasks in (["digits"], []):
        model = NanoModule(steps=2)
        monkeypatch.setattr(demo, "NanoModule", lambda model=model: model)
        demo.fit_nano(0, [one_step.UpdateVariants(path, 0, tasks)], tmp_path)
        weights.append(model.state_dict())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    found = one_step.measured(path)
    assert {key[:2] for key in found} == {(0, "digits")}
    assert len(found) == 2 + 3 + 4 + 7 + 4 + 6
    assert all(0 <= entry["MASR"] <= 1 and math.isfinite(entry["old"]) for entry in found.values())
    assert one_step.table(path).count("\n") == len(found) + 1
