"""The studies beside the package run, on small streams."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hpa_lightning.callbacks import CalibrationSettings, NullSpaceProjection
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.modules import NanoModule

STUDIES = Path(__file__).parent.parent / "studies"
SMALL = {"steps": 2, "train_size": 32, "calibration_size": 8, "harmful_calibration_size": 24, "test_size": 2}


@pytest.fixture(autouse=True)
def scripts_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDIES))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variants_are_measured_once_and_training_goes_on_from_the_whole_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step, fitting = load("one_step"), importlib.import_module("fitting")
    path = tmp_path / "variants.jsonl"
    monkeypatch.setattr(one_step, "SAFETY_SAMPLES", (8, 16))
    small = {**SMALL, "task_order": ["driving", "digits"]}
    monkeypatch.setattr(fitting, "NanoDataModule", partial(NanoDataModule, **small))
    weights = []
    for tasks in (["digits"], []):
        model = NanoModule(steps=2)
        monkeypatch.setattr(fitting, "NanoModule", lambda model=model: model)
        fitting.fit_nano(0, [one_step.UpdateVariants(path, 0, tasks)], tmp_path)
        weights.append(model.state_dict())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    found = one_step.measured(path)
    assert {key[:2] for key in found} == {(0, "digits")}
    assert len(found) == 2 + 3 + 4 + 7 + 4 + 6
    assert all(0 <= entry["MASR"] <= 1 and math.isfinite(entry["old"]) for entry in found.values())
    assert one_step.table(path).count("\n") == len(found) + 1


def test_shares_of_an_update_along_the_safety_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subspaces, fitting = load("subspaces"), importlib.import_module("fitting")
    draw = np.random.default_rng(0)
    update, task = draw.normal(size=(3, 4)), np.diag([1.0, 2.0, 3.0, 4.0])
    safety = np.diag([8.0, 1.0, 0.5, 0.5])
    found = subspaces.subspace_shares(*(torch.tensor(value) for value in (update, safety, task)), 0.75)
    squares = (update**2).sum(axis=0)
    expected = {
        "directions": 1 / 4,
        "task_inputs": 1 / 10,
        "update": squares[0] / squares.sum(),
        "on_safety": 8 * squares[0] / (squares @ np.diag(safety)),
        "on_task": (squares[1:] @ np.diag(task)[1:]) / (squares @ np.diag(task)),
    }
    assert found == pytest.approx(expected)

    path = tmp_path / "subspaces.jsonl"
    small = {**SMALL, "task_order": ["driving", "digits"]}
    monkeypatch.setattr(fitting, "NanoDataModule", partial(NanoDataModule, **small))
    fitting.fit_nano(0, [subspaces.UpdateSubspaces(path, 0, safety_samples=8)], tmp_path)
    assert len(path.read_text().splitlines()) == 2 * 28 * 4
    assert subspaces.table(path).count("\n") == 5


def test_change_of_outputs_is_zero_where_no_direction_is_left_and_not_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, fitting = load("output_change"), importlib.import_module("fitting")
    small = {"steps": 2, "train_size": 32, "calibration_size": 8, "test_size": 4, "harmful_calibration_size": 16}
    monkeypatch.setattr(fitting, "NanoModule", lambda: NanoModule(steps=2))
    found = {}
    for method, energy in (("sequential", 0.0), ("null-space", 1.0)):
        path = tmp_path / f"{method}.json"
        projection = NullSpaceProjection(energy=energy, calibration=CalibrationSettings(safety_samples=8), form="exact")
        fitting.fit_nano(0, [projection, change.OutputChange(path)], tmp_path, task_order=["digits"], **small)
        found[method] = json.loads(path.read_text())
    assert list(found["sequential"]) == ["digits", "harmful-text", "harmful-image", "harmful-typeset"]
    for sets in zip(found["sequential"].values(), found["null-space"].values(), strict=True):
        tuned, kept = (np.array(one["counts"]) for one in sets)
        assert tuned[0] < tuned.sum() / 2  # two steps change little, but something
        assert kept.sum() == kept[0] > 0
    assert change.quantile([0, *[0] * 49, 10, *[0] * 51], 0.5) == pytest.approx(change.EDGES[50])
    assert change.table(found).count("\n") == 1 + 2 * 4
    change.draw(found, tmp_path / "change.png")
    assert (tmp_path / "change.png").stat().st_size > 10_000


def test_changes_of_the_tasks_add_up_to_no_more_than_their_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulated, fitting = load("accumulated_change"), importlib.import_module("fitting")
    small = {"steps": 2, "train_size": 32, "calibration_size": 8, "test_size": 4, "task_order": ["driving", "digits"]}
    monkeypatch.setattr(fitting, "NanoDataModule", partial(NanoDataModule, **small))
    model = NanoModule(steps=2)
    monkeypatch.setattr(fitting, "NanoModule", lambda: model)
    path = tmp_path / "accumulated.jsonl"
    watcher = accumulated.AccumulatedChange(path, {"method": "stream=1e-3", "seed": 0})
    settings = CalibrationSettings(safety_samples=8)
    fitting.fit_nano(0, [NullSpaceProjection(stream_budget=1e-3, calibration=settings), watcher], tmp_path)
    found = [entry for line in path.read_text().splitlines() if "inputs" in (entry := json.loads(line))]
    assert [entry["inputs"] for entry in found] == ["safety", "safety", "driving"]
    first, last = found[:2]
    assert first["sums"] == pytest.approx(first["changes"]) and first["roots"] == pytest.approx(first["changes"])
    assert len(last["changes"]) == 28 and max(last["changes"]) > 0
    # Other safety inputs calibrate than those that are measured.
    assert all(0 < change <= total * (1 + 1e-4) for change, total in zip(last["changes"], last["sums"], strict=True))
    assert "| digits |" in accumulated.table(path)


def test_the_last_task_tells_kinds_of_answers_and_parts_of_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_task, fitting = load("last_task"), importlib.import_module("fitting")
    small = {**SMALL, "task_order": ["driving", "reading"]}
    monkeypatch.setattr(fitting, "NanoDataModule", partial(NanoDataModule, **small))
    model = NanoModule(steps=2)
    monkeypatch.setattr(fitting, "NanoModule", lambda: model)
    monkeypatch.setattr(last_task, "ENERGIES", (0.5,))
    path = tmp_path / "last_task.jsonl"
    fitting.fit_nano(0, [last_task.LastTask(path, 0, safety_samples=8)], tmp_path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["what"] for entry in found if entry["table"] == "answers"] == [
        "after driving",
        "after reading",
        "reading's update without energy 0.5, all positions",
        "reading's update without energy 0.5, answers",
    ]
    inside = {entry["what"]: entry["energy"] for entry in found if entry["table"] == "inside"}
    assert len(inside) == 12 and all(0 < energy <= 1 for energy in inside.values())
    # The calibration's own directions hold at least what was asked for, and test inputs are much like them.
    assert min(v for k, v in inside.items() if k.startswith("energy 0.5, all") and k.endswith("all positions")) > 0.2
    assert "after reading" in last_task.table(path)
