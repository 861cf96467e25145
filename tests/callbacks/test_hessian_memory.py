"""Sketches as what the methods remember: against whole Hessians, through checkpoints, within their bound."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module, token_loader
from support.layer_inputs import inputs_of
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit

from hpa_lightning.callbacks import NullSpaceProjection, RegressionFusion
from hpa_lightning.functional import InputSketch


class Bases(L.Callback):
    """Keeps the bases of the last batch."""

    def __init__(self, projection: NullSpaceProjection) -> None:
        self.projection = projection
        self.seen: dict[str, torch.Tensor] = {}
        self.saved: dict[str, Any] = {}

    def on_train_batch_end(self, *args: Any) -> None:
        first = self.projection._first
        self.seen = {name: self.projection._bases[first[name]].clone() for name in first}
        self.saved = self.projection.state_dict()


@pytest.mark.parametrize("rank", [192, 2])
def test_updates_of_real_layers_stay_within_the_sketches_bound(rank: int, tmp_path: Path) -> None:
    """Rank 192 is all columns of these layers; 2 is a few of them."""
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    names = list(dense(module))
    before = dense(module)
    inputs = inputs_of(module, list(token_loader(7, 8)), names)
    module.train()
    projection = NullSpaceProjection(energy=0.95, form="sketch", rank=rank, **calibration_data())
    bases = Bases(projection)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(module, [projection, bases], tmp_path)
    assert any("Set a larger rank" in str(one.message) for one in told) is (rank == 2)
    for name, weight in dense(module).items():
        x, update = torch.from_numpy(inputs[name]).double(), weight - before[name]
        basis = bases.seen[name]
        assert basis.shape[1] <= rank
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)
        assert float((update @ basis.double()).norm()) <= 1e-5 * float(update.norm())
        sketch = InputSketch(x.shape[1], min(rank, x.shape[1]))
        sketch.update(x)
        done, size = float((x @ update.T).square().sum()), float(update.square().sum())
        assert done <= sketch.worst_case(basis) * size * (1 + 1e-4)
        if rank == 192:  # the exact form's directions, up to the rounding of a bfloat16 basis
            values, vectors = np.linalg.eigh(x.numpy().T @ x.numpy())
            top = torch.from_numpy(vectors[:, ::-1][:, : basis.shape[1]].copy())
            rest = torch.eye(x.shape[1]).double() - basis.double() @ basis.double().T
            worst = float(torch.linalg.eigvalsh(rest @ (x.T @ x) @ rest)[-1])
            exact = float(values[::-1][basis.shape[1]])
            assert worst <= exact * 1.01 + 1e-5 * float(values[-1])
            assert float((top.T @ basis.double()).square().sum()) > basis.shape[1] - 0.02


def test_a_basis_comes_back_bit_for_bit_from_its_half_precision_copy(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    projection = NullSpaceProjection(energy=0.8, form="sketch", **calibration_data())
    bases = Bases(projection)
    fit(module, [projection, bases], tmp_path)
    again = NullSpaceProjection(energy=0.8, form="sketch", **calibration_data())
    again.load_state_dict(bases.saved)
    assert all(basis.dtype == torch.bfloat16 for basis in bases.saved["bases"].values())
    for name, first in bases.saved["first"].items():
        assert torch.equal(again._bases[first], bases.seen[name])


@pytest.mark.parametrize("callback", [NullSpaceProjection, RegressionFusion])
def test_memory_goes_through_checkpoints_and_from_the_exact_form(callback: Any, tmp_path: Path) -> None:
    states = {}
    for form in ("exact", "sketch"):
        module = foreign_module(OPTIMIZERS["adamw_decay"], True)
        one = callback(form=form, **calibration_data())
        fit(module, [one], tmp_path / form)
        states[form] = one.state_dict()
    for saved in states["sketch"]["memory"].values():
        assert saved["rows"].dtype == torch.bfloat16
    same, narrow, converted = (callback(form="sketch", **rank) for rank in ({}, {"rank": 5}, {"rank": 5}))
    same.load_state_dict(states["sketch"])
    narrow.load_state_dict(states["sketch"])
    converted.load_state_dict(states["exact"])
    for name, saved in same.state_dict()["memory"].items():
        assert all(torch.equal(saved[key], states["sketch"]["memory"][name][key]) for key in saved)
        sketch, exact = converted.memory.inputs.sums[name], states["exact"]["memory"][name].double()
        assert len(sketch.rows) == 5 == len(narrow.memory.inputs.sums[name].rows)
        rest = torch.linalg.eigvalsh(exact - sketch.rows.double().T @ sketch.rows.double())
        assert float(rest[-1]) <= sketch.error + 1e-5 * float(exact.trace())
    with pytest.raises(MisconfigurationException, match="form='sketch'"):
        callback(form="exact").load_state_dict(states["sketch"])


@pytest.mark.parametrize("options", [{"form": "whole"}, {"rank": 0}])
def test_settings_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NullSpaceProjection(**options)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("callback", [NullSpaceProjection, RegressionFusion])
def test_a_file_is_as_good_as_the_same_callback(callback: Any, lora: bool, tmp_path: Path) -> None:
    """Two fits with one callback, and two with a callback each of which the second reads the first one's file."""
    file, weights = tmp_path / "memory.safetensors", {}
    for name in ("one", "file", "nothing"):
        module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
        first = callback(form="sketch", save_memory=file if name == "file" else None, **calibration_data())
        fit(module, [first], tmp_path / name)
        options = {"earlier_tasks": file} if name == "file" else {}
        second = first if name == "one" else callback(form="sketch", **options, **calibration_data())
        fit(module, [second], tmp_path / name)
        weights[name] = dense(module)
        if name == "file":
            assert second.memory.state_dict()["remembered"] == ["fit", "fit"]
    for name, weight in weights["one"].items():
        torch.testing.assert_close(weights["file"][name], weight, rtol=0, atol=1e-7)
    assert any(not torch.equal(weights["nothing"][name], weight) for name, weight in weights["one"].items())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_file_of_other_layers_or_in_the_way_ends_the_fit_before_it_trains(lora: bool, tmp_path: Path) -> None:
    file = tmp_path / "memory.safetensors"
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    fit(
        module,
        [RegressionFusion(form="sketch", save_memory=file, target_modules=["up_proj"], **calibration_data())],
        tmp_path,
    )
    before = dense(module)
    with pytest.raises(MisconfigurationException, match=r"RegressionFusion: .*does not know"):
        fit(module, [RegressionFusion(form="sketch", earlier_tasks=file, **calibration_data())], tmp_path)
    with pytest.raises(MisconfigurationException, match="exists already; name another file"):
        fit(module, [NullSpaceProjection(form="sketch", save_memory=file, **calibration_data())], tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in dense(module).items())


@pytest.mark.parametrize("options", [{"form": "exact"}, {"form": "sketch", "memory_weight": 0.0}])
@pytest.mark.parametrize("name", ["earlier_tasks", "save_memory"])
def test_files_need_a_memory_of_sketches(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{name} is 'a.safetensors' with .*expected form='sketch'"):
        RegressionFusion(**{name: "a.safetensors"}, **options)


@pytest.mark.parametrize("callback", [NullSpaceProjection, RegressionFusion])
def test_a_fit_that_began_without_a_file_cannot_be_given_one(callback: Any, tmp_path: Path) -> None:
    """It would go on without reading it."""
    file = tmp_path / "memory.safetensors"
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    first = callback(form="sketch", save_memory=file, **calibration_data())
    fit(module, [first], tmp_path)
    late = callback(form="sketch", earlier_tasks=file)
    with pytest.raises(MisconfigurationException, match="began without such a file"):
        late.load_state_dict(first.state_dict())
    second = callback(form="sketch", earlier_tasks=file, **calibration_data())
    late.load_state_dict(second.state_dict())  # nothing is remembered yet: the file is still to be read
    fit(module, [second], tmp_path)
    late.load_state_dict(second.state_dict())
    assert late.memory.state_dict()["remembered"] == ["fit", "fit"]


def test_a_task_without_layers_that_the_file_has_ends_before_it_trains(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], False)
    fusion = RegressionFusion(form="sketch", save_memory=tmp_path / "memory.safetensors", **calibration_data())
    fit(module, [fusion], tmp_path)
    before = dense(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("q_proj" not in name)
    with pytest.raises(MisconfigurationException, match=r"not tuned in task 'fit' \(model.layers.0.q_proj, "):
        fit(module, [fusion], tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in dense(module).items())
