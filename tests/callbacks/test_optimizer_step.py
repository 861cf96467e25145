"""Callbacks that act after every optimizer step leave no hook behind."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit, settings
from support.method_registry import METHODS
from torch import Tensor

from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, NullSpaceProjection, OrthogonalProjection
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.modules.lora import lora_layers


def test_hooks_are_removed_after_a_crash(tmp_path: Path) -> None:
    class Crash(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise RuntimeError("crash")

    module = foreign_module(OPTIMIZERS["sgd_momentum"], True)
    freezing, projection = MaskedFreezing(), OrthogonalProjection()
    with pytest.raises(RuntimeError, match="crash"):
        fit(module, [FocusPartition(probe_steps=1, **settings()), freezing, projection, Crash()], tmp_path)
    assert not freezing._handles and not projection._handles
    for inner in module.modules():
        assert not inner._forward_pre_hooks and not inner._forward_hooks and "forward" not in inner.__dict__


class Wrapper(torch.optim.Optimizer):
    """Around another optimizer, as Lookahead is written: without Optimizer.__init__, with hooks that nobody calls."""

    def __init__(self, inner: torch.optim.Optimizer, hooks: type) -> None:
        self.inner, self.state, self.defaults = inner, inner.state, inner.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = hooks(), hooks()

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("hooks", [OrderedDict, dict])
@pytest.mark.parametrize("method", ["null_space", "in_training"])
def test_an_optimizer_that_calls_no_hooks_is_refused(hooks: type, method: str, tmp_path: Path) -> None:
    module = foreign_module(lambda p: Wrapper(torch.optim.AdamW(p, lr=0.01), hooks), lora=True)
    told = r"(NullSpaceProjection|MaskedFreezing) acts after every .*test_optimizer_step\.Wrapper\.step does not call"
    with pytest.raises(MisconfigurationException, match=told):
        fit(module, METHODS[method](calibration_data()), tmp_path)


class Average(L.Callback):
    """Averages the trained weights from the fit's start on, and swaps the average in when the epoch ends."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.average = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self.average:
                self.average[name].lerp_(parameter, 0.1)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])


class Directions(L.Callback):
    """Keeps the protected directions of every layer, which a task's end lets go."""

    def __init__(self, projection: NullSpaceProjection) -> None:
        self.projection = projection
        self.bases: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        projection = self.projection
        self.bases = {one.name: projection._bases[projection._first[one.name]] for one in projection.layers}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_an_average_that_is_swapped_in_stays_out_of_the_protected_directions(lora: bool, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    before = {name: weight.clone() for name, weight in dense(module).items()}
    projection = NullSpaceProjection(energy=0.7, **calibration_data())
    directions = Directions(projection)
    told = r"NullSpaceProjection found 1\d layers .* written by something other than the optimizer"
    if lora:
        with pytest.warns(UserWarning, match=told):
            fit(module, [Average(), projection, directions], tmp_path, epochs=1)
        trained = {name: factors.lora_a.detach() for name, factors in lora_layers(module)}
    else:  # the average of weights that stay out of the directions stays out of them, and nothing is to be told
        fit(module, [Average(), projection, directions], tmp_path, epochs=1)
        trained = {name: weight - before[name] for name, weight in dense(module).items()}
    for name, basis in directions.bases.items():
        update = trained[name].float()
        assert float((update @ basis.float()).norm()) <= 1e-4 * float(update.norm()), name


@pytest.mark.parametrize("share", ["output", "nearest"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_what_is_written_after_the_last_step_keeps_to_the_budget(lora: bool, share: Any, tmp_path: Path) -> None:
    projection = NullSpaceProjection(share=share, budget=0.02, **calibration_data())
    bounds: list[float] = []

    told = r"NullSpaceProjection found \d+ layers .* written by something other than the optimizer"
    output = projection.output
    assert output is not None
    clear = output.clear

    def measured() -> None:
        bounds.extend(one["change"] for one in output.shares().values())
        clear()

    output.clear = measured  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=told):
        fit(foreign_module(OPTIMIZERS["adamw_decay"], lora), [projection, Writes()], tmp_path, epochs=1)
    assert bounds and max(bounds) <= 0.02 * 1.001


class Writes(L.Callback):
    """Writes into one tensor of every layer after the last step: what is trained there."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.is_last_batch:
            for name, parameter in pl_module.named_parameters():
                if ".layers." in name and parameter.requires_grad and parameter.ndim > 1:
                    parameter.add_(0.02)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "free"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_what_is_written_after_the_last_step_is_orthogonal_at_the_end(lora: bool, frozen: bool, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    before = {name: weight.clone() for name, weight in dense(module).items()}
    # The projection stands first in the list: it comes after the freezing all the same, as after every step.
    methods = [OrthogonalProjection(), *([MaskedFreezing()] if frozen else []), FocusPartition(2, **settings())]
    with pytest.warns(UserWarning, match=r"OrthogonalProjection found 1\d layers .* other than the optimizer"):
        fit(module, [*methods, Writes()], tmp_path, epochs=1)
    for name, weight in dense(module).items():
        update = weight - before[name]
        norms = float(update.norm() * before[name].norm())
        assert abs(float((update * before[name]).sum())) <= 2e-6 * norms, name


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("share", ["energy", "output", "nearest"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_rounding_is_not_told_and_not_left_in_the_weights(
    lora: bool, optimizer: str, share: Any, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_again, same = StepCallback.keep_again, []

    def watched(
        self: StepCallback, trainer: Any, pl_module: Any, task: Any, tensors: Any, *rest: Any, **more: Any
    ) -> None:
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        keep_again(self, trainer, pl_module, task, tensors, *rest, **more)
        same.extend(torch.equal(tensors[name], kept) for name, kept in before.items())

    monkeypatch.setattr(StepCallback, "keep_again", watched)
    module = foreign_module(OPTIMIZERS[optimizer], lora)
    given: dict[str, Any] = {"energy": 0.7} if share == "energy" else {"share": share, "budget": 0.02}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*something other than the optimizer")
        fit(module, [NullSpaceProjection(**given, **calibration_data())], tmp_path, epochs=1, precision=precision)
        module = foreign_module(OPTIMIZERS[optimizer], lora)
        methods = [FocusPartition(2, **settings()), MaskedFreezing(), OrthogonalProjection()]
        fit(module, methods, tmp_path, epochs=1, precision=precision)
    assert same and all(same)
