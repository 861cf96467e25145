"""Earlier tasks that tuned other layers: what is remembered of them where, and what is said about the rest."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import ForeignModule, foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit
from torch import Tensor

from hpa_lightning.callbacks import NullSpaceProjection, RegressionFusion
from hpa_lightning.callbacks.remembered_inputs import RememberedInputs
from hpa_lightning.functional import InputSketch

METHODS = pytest.mark.parametrize("callback", [NullSpaceProjection, RegressionFusion])
FORMS = pytest.mark.parametrize("form", ["exact", "sketch"])


def tuned(module: ForeignModule, *names: str) -> ForeignModule:
    """The module with the layers of these last names under tuning, and nothing else."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(f".{one}." in name for one in names))
    return module


def told(module: ForeignModule, callback: Any, folder: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, [callback], folder)
    return [str(one.message) for one in caught if "is not remembered" in str(one.message)]


@METHODS
@FORMS
def test_layers_that_no_earlier_task_tuned_are_told_once(callback: Any, form: Any, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], False)
    method = callback(form=form, **calibration_data())
    assert not told(tuned(module, "up_proj"), method, tmp_path)
    (message,) = told(tuned(module, "up_proj", "down_proj"), method, tmp_path)
    assert f"{callback.__name__}: 3 layers are tuned in task 'fit' and were in no task before it" in message
    assert "(model.layers.0.down_proj, model.layers.1.down_proj, model.layers.2.down_proj)" in message
    assert not told(module, method, tmp_path)  # they are remembered by now
    assert not told(module, callback(form=form, memory_weight=0.0, **calibration_data()), tmp_path)


@METHODS
def test_a_file_of_unequal_tasks_is_refused_before_the_training(callback: Any, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], False)
    method = callback(form="sketch", save_memory=tmp_path / "memory.safetensors", **calibration_data())
    fit(tuned(module, "up_proj"), [method], tmp_path)
    before = dense(module)
    with pytest.raises(MisconfigurationException, match=r"\(model.layers.0.down_proj, .*file of save_memory would not"):
        fit(tuned(module, "up_proj", "down_proj"), [method], tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in dense(module).items())


@METHODS
@FORMS
def test_a_layer_that_shares_its_input_with_an_earlier_task_s_is_protected(
    callback: Any, form: Any, tmp_path: Path
) -> None:
    """q_proj and v_proj read the same: after tuning the one the task's inputs are known for the other."""
    module = foreign_module(OPTIMIZERS["adamw_decay"], False)
    method = callback(form=form, **calibration_data())
    fit(tuned(module, "v_proj"), [method], tmp_path)
    before = diagonal(method.memory.inputs.of("model.layers.0.v_proj"))
    assert not told(tuned(module, "q_proj", "v_proj"), method, tmp_path)
    both = [diagonal(method.memory.inputs.of(f"model.layers.0.{name}")) for name in ("q_proj", "v_proj")]
    assert torch.equal(*both) and bool((both[0] > before).all())
    assert len(method.memory.inputs.sums) == 3  # one for each block


def diagonal(held: Tensor | InputSketch | None) -> Tensor:
    assert held is not None
    return held.diagonal().clone() if isinstance(held, Tensor) else held.diagonal.clone()


@pytest.mark.parametrize("rank", [None, 4])
def test_sums_of_layers_that_turn_out_to_share_an_input_become_one(rank: int | None) -> None:
    """Three tasks: q alone, v alone, then both, which read the same."""

    def task(seed: int) -> Any:
        x = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
        sketch = InputSketch(4, 4)
        sketch.update(x)
        return x.T @ x if rank is None else sketch

    inputs = RememberedInputs()
    inputs.add({"q": task(0)}, {"q": "q"}, 4)
    assert inputs.lacking({"v": "v"}) == ["v"]
    inputs.add({"v": task(1)}, {"v": "v"}, 4)
    assert inputs.lacking({"q": "q", "v": "q", "up": "up"}) == ["up"]
    again = RememberedInputs.from_state(inputs.state_dict(), rank)
    for one in (inputs, again):
        one.add({"q": task(2)}, {"q": "q", "v": "q"}, 4)
        assert one.places == {"q": "q", "v": "q"} and list(one.sums) == ["q"]
        expected = sum(diagonal(task(seed)) for seed in range(3))
        torch.testing.assert_close(diagonal(one.of("v")), expected)
    assert RememberedInputs().lacking({"q": "q"}) == []  # the first task has nothing to forget


@METHODS
def test_a_resumed_fit_writes_over_no_file_but_its_own(callback: Any, tmp_path: Path) -> None:
    """From a checkpoint within the task, before its end has written the file for the first time."""

    def go_on(file: Path, checkpoint: Path | None) -> None:
        method = callback(form="sketch", save_memory=file, **calibration_data())
        kept = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = quiet_trainer(tmp_path / "run", [method, kept], max_epochs=1, enable_checkpointing=True)
        module = foreign_module(OPTIMIZERS["adamw_decay"], True)
        trainer.fit(module, token_loader(1, 20), ckpt_path=str(checkpoint) if checkpoint else None)

    own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    go_on(own, None)
    checkpoint = tmp_path / "kept" / "step=2.ckpt"
    written = own.stat().st_mtime_ns
    other.write_bytes(b"of somebody else")
    with pytest.raises(MisconfigurationException, match="exists already; name another file, or remove it: this fit"):
        go_on(other, checkpoint)
    assert other.read_bytes() == b"of somebody else"
    go_on(own, checkpoint)
    assert own.stat().st_mtime_ns > written
