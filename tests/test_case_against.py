"""The study of what null-space projection does not protect: its inputs, figures, tables, and small runs of it."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.data.nano.examples import split_of
from hpa_lightning.data.nano.harm import SAFETY_KINDS
from hpa_lightning.data.nano.lexicon import HAZARD_ICONS, VIOLENT
from hpa_lightning.data.nano.nano_records import safety_records
from hpa_lightning.modules.trainable import TrainableParts

STUDIES = Path(__file__).parent.parent / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("case_against")


@pytest.fixture
def inputs(study: ModuleType) -> ModuleType:
    return sys.modules["harmful_inputs"]


def test_the_inputs_of_a_basis_are_of_the_calibration_split_and_of_what_they_are_called(inputs: ModuleType) -> None:
    for what in inputs.CALIBRATIONS:
        found = inputs.calibration_examples(what, 24, 101)
        assert len({example.key for example in found}) == 24
        assert {split_of(example.key) for example in found} == {"calibration"}
    assert all("?" in example.question for example in inputs.calibration_examples("questions", 24, 0))
    known = inputs.calibration_examples("known harm", 30, 0)
    assert not any(verb in example.other.split() for example in known for verb in VIOLENT)
    assert not any(icon in example.other for example in known[1::3] for icon in HAZARD_ICONS[3:])
    skills = [len(inputs.calibration_examples("all", 8, 0)[start::3]) for start in range(3)]
    assert skills == [3, 3, 2]
    assert {example.skill for example in inputs.calibration_examples("typeset", 8, 0)} == {"harmful typeset"}


def test_the_first_inputs_that_are_scored_are_the_benchmarks(inputs: ModuleType) -> None:
    for kind, one in zip(SAFETY_KINDS, inputs.scored_sets(12), strict=True):
        assert [record.messages for record in one.data[:8]] == [
            record.messages for record in safety_records(kind, "test", 8)
        ]
        counts = inputs.by_group(kind, inputs.scored_examples(12)[kind], [True, False] * 6)
        assert sum(total for total, _ in counts.values()) == 12
        assert sum(unsafe for _, unsafe in counts.values()) == 6


def test_tables_are_means_over_kinds_and_seeds(study: ModuleType) -> None:
    tables = importlib.import_module("case_against_tables")
    parts = product(SAFETY_KINDS, ("question", "instruction"), ("known", "held out"))
    names = [", ".join(part) for part in parts]
    cells = []
    for seed, unsafe in ((101, 1), (102, 3)):
        groups = {name: [10, unsafe if name.startswith("text") else 0] for name in names}
        common = {"condition": "all", "seed": seed, "commit": "a" * 40}
        cells.append({"group": "kinds", "groups": groups, "captions": 0.5, "harmless": 0.0, **common})
        cells.append({"group": "attack", "curve": {"0": groups, "5": {n: [10, 10] for n in names}}, **common})
    shown = tables.tables(cells)
    width = 12.706 * np.std([10, 30], ddof=1) / np.sqrt(2)
    assert f"| all | 2 | 20.0 ± {width:.1f} | 0.0 ± 0.0 | 0.0 ± 0.0 | 6.7 ± {width / 3:.1f} | 50.0 ± 0.0 |" in shown
    assert f"| all | 2 | 6.7 ± {width / 3:.1f} | 100.0 ± 0.0 |" in shown
    assert "**kinds**: seeds 101, 102; commits aaaaaaa" in shown


def test_shares_of_one_set_in_the_directions_of_another(study: ModuleType) -> None:
    overlap = importlib.import_module("safety_overlap")
    draw = np.random.default_rng(0)
    update = draw.normal(size=(3, 4))
    theirs = np.diag([1.0, 7.0, 1.0, 1.0])
    basis, own = torch.eye(4, dtype=torch.float64)[:, :1], torch.eye(4, dtype=torch.float64)[:, 1:2]
    found = overlap.shares(basis, own, torch.tensor(theirs), torch.tensor(update))
    squares, energies = (update**2).sum(axis=0), np.diag(theirs)
    expected = {
        "energy": 1 / 10,
        "left": (squares[1:] @ energies[1:]) / (squares @ energies),
        "overlap": 0.0,
        "chance": 1 / 4,
        "directions": 1 / 4,
    }
    assert found == pytest.approx(expected)
    assert overlap.shares(own, own, torch.tensor(theirs), torch.tensor(update))["overlap"] == pytest.approx(1)


def test_every_basis_is_held_against_every_set(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlap = importlib.import_module("safety_overlap")
    monkeypatch.setattr(overlap, "BASES", ("all", "text", "all, 4"))
    monkeypatch.setattr(overlap, "fit_nano", partial(overlap.fit_nano, steps=2, train_size=32, test_size=4))
    monkeypatch.setattr(overlap, "SafetyOverlap", partial(overlap.SafetyOverlap, count=6))
    monkeypatch.setattr(sys, "argv", ["safety_overlap.py", "--output", str(tmp_path)])
    overlap.main()
    entries = [json.loads(line) for line in (tmp_path / "overlap.jsonl").read_text().splitlines()]
    assert len(entries) == 28 * 3 * 10
    assert all(0 <= entry[figure] <= 1 + 1e-6 for entry in entries for figure in ("energy", "overlap", "left"))
    assert overlap.table(tmp_path / "overlap.jsonl", 0.7).count("\n| all, 4 |") == 4


def test_cells_are_measured_once(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cells.jsonl"
    small = {"steps": 2, "train_size": 32, "calibration_size": 8, "test_size": 4}
    monkeypatch.setattr(study, "NanoDataModule", partial(NanoDataModule, **small))
    monkeypatch.setattr(study, "TASKS", ["driving", "captions"])
    monkeypatch.setattr(study, "SCORED", 40)
    monkeypatch.setattr(study, "ATTACK_STEPS", 2)
    monkeypatch.setattr(study, "CURVE", (0, 2))
    norms = TrainableParts(names=["model.language_model.*norm*"])
    groups = {
        "kinds": {"look-alikes": study.Stream("look-alikes", 8)},
        "injection": {"10 %": study.Stream("nothing", 8, 0.1)},
        "attack": {"energy": study.Attack(1.0), "norms": study.Attack(parts=norms, learning_rate=0.5)},
    }
    monkeypatch.setattr(study, "GROUPS", groups)
    monkeypatch.setattr(sys, "argv", ["case_against.py", "--results", str(path), "--seeds", "0"])
    path.write_text('{"group": "kinds", "cond')  # of a run that was killed
    study.main()
    cells = {cell["condition"]: cell for cell in map(json.loads, path.read_text().splitlines()[1:])}
    assert list(cells) == ["look-alikes", "10 %", "energy", "norms"]
    assert {"captions", "harmless", "groups"} <= cells["look-alikes"].keys()
    curve = cells["energy"]["curve"]
    assert curve["2"] == curve["0"]  # no direction is left
    assert cells["norms"]["curve"]["2"] != cells["norms"]["curve"]["0"]
    study.main()
    assert len(path.read_text().splitlines()) == 1 + 4
