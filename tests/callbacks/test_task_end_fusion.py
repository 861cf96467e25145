"""A method that fuses at a task's end: what it writes is kept and saved, and what is broken is not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit
from support.method_registry import METHODS

from hpa_lightning.callbacks.divergence import TrainingDivergedError
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.modules.lora import lora_layers


class Scales(TaskEndFusion):
    """The new weight is the old one, times a factor."""

    def __init__(self, factor: float, target_modules: list[str] | None = None) -> None:
        super().__init__(target_modules=target_modules)
        self.factor = factor

    def fuse(self, trainer: Any, pl_module: Any, task: Any) -> None:
        self.starts_writing("scaling")
        for linear in self.layers:
            linear.write_(self.factor * linear.before())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_what_it_writes_is_the_model(lora: bool, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    before = {name: weight.clone() for name, weight in dense(module).items()}
    fit(module, [Scales(2.0)], tmp_path)
    for name, weight in dense(module).items():
        torch.testing.assert_close(weight, 2.0 * before[name])
    assert all(not factors.lora_b.any() for _, factors in lora_layers(module))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_method_that_makes_weights_that_are_not_finite_ends_the_fit_by_name(lora: bool, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    with pytest.raises(TrainingDivergedError, match=r"Scales .* weights that are not finite.* model\.layers\.0\."):
        fit(module, [Scales(math.nan)], tmp_path)


@pytest.mark.parametrize("methods", [("post_training", "regression"), ("ties", "safe_delta")])
def test_two_fusions_of_one_layer_are_refused_by_name(methods: tuple[str, str], tmp_path: Path) -> None:
    callbacks = [callback for method in methods for callback in METHODS[method](calibration_data())]
    first, second = (type(callback).__name__ for callback in callbacks)
    with pytest.raises(MisconfigurationException, match=rf"{first} and {second} both fuse \d+ layers .* expected one"):
        fit(foreign_module(OPTIMIZERS["adamw_decay"], True), callbacks, tmp_path)


class ScalesToo(Scales):
    """Another method, since Lightning keeps the state of one callback of a class."""


def test_two_fusions_of_other_layers_do_what_each_does_alone(tmp_path: Path) -> None:
    def fitted(*callbacks: Scales) -> dict[str, torch.Tensor]:
        module = foreign_module(OPTIMIZERS["adamw_decay"], True)
        fit(module, list(callbacks), tmp_path)
        return {name: weight.clone() for name, weight in module.state_dict().items()}

    queries, downs = Scales(0.5, ["q_proj"]), ScalesToo(0.5, ["down_proj"])
    both, alone = fitted(queries, downs), fitted(Scales(0.5, ["q_proj"]))
    for layer, same in (("q_proj.base_layer", True), ("down_proj.base_layer", False)):
        named = [name for name in both if layer in name]
        assert named and all(torch.equal(both[name], alone[name]) is same for name in named)
