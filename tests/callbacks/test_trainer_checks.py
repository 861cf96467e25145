"""What a trainer or an optimizer cannot do with a callback is refused by name before the fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.calibrated_fits import fit_with
from support.foreign_module import ForeignModule, LanguageModel, foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, settings
from support.method_registry import METHODS

from hpa_lightning.callbacks import HarmoniousFusion, SafetyGate, SequentialTuning
from hpa_lightning.callbacks.baselines import RegLoRA


def test_manual_optimization_is_refused_where_calibration_would_step(tmp_path: Path) -> None:
    class Manual(ForeignModule):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    def tuned() -> Manual:
        return Manual(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.01))

    with pytest.raises(MisconfigurationException, match="HarmoniousFusion needs automatic optimization; Manual sets"):
        fit_with(tmp_path, HarmoniousFusion(**calibration_data()), tuned=tuned())
    fit_with(tmp_path, *METHODS["linear_merging"](calibration_data()), tuned=tuned())  # it calibrates with nothing


def test_an_optimizer_that_the_probe_cannot_step_is_refused(tmp_path: Path) -> None:
    tuned = ForeignModule(LanguageModel(), lambda p: torch.optim.LBFGS(p, lr=0.01))
    with pytest.raises(MisconfigurationException, match="LBFGS computes several"):
        fit_with(tmp_path, *METHODS["in_training"](calibration_data()), tuned=tuned)


def test_half_precision_without_scaling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="HarmoniousFusion does not support precision='16-true'"):
        fit_with(tmp_path, HarmoniousFusion(**calibration_data()), precision="16-true")


def strategies() -> dict[str, tuple[Strategy, str]]:
    """Strategies as they are before any process has started, and what their refusal says."""
    pieces = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    pieces._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}  # type: ignore[assignment]
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    sharded._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 1)}  # type: ignore[assignment]
    return {
        "tensor parallel": (pieces, "tensor_parallel_size is 2"),
        "fsdp1": (FSDPStrategy(), "FSDP1 flattens"),
        "deepspeed": (DeepSpeedStrategy.__new__(DeepSpeedStrategy), "fp32 copies"),
        "fsdp2": (sharded, "whole adapters"),
        "fsdp2, rollback": (sharded, "rollback keeps whole weights"),
    }


@pytest.mark.parametrize("kind", ["tensor parallel", "fsdp1", "deepspeed", "fsdp2", "fsdp2, rollback"])
def test_strategies_are_refused_by_name_and_reason(kind: str) -> None:
    strategy, reason = strategies()[kind]
    callback = {"fsdp2": RegLoRA(), "fsdp2, rollback": SafetyGate(0.1, "rollback")}.get(kind, SequentialTuning())
    with pytest.raises(MisconfigurationException, match=f"{type(strategy).__name__}.*{reason}"):
        callback.setup(SimpleNamespace(strategy=strategy), foreign_module(torch.optim.SGD, True), "fit")


def test_other_strategies_are_refused(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    class Fake:
        strategy = FSDPStrategy()

    with pytest.raises(MisconfigurationException, match="FSDPStrategy"):
        HarmoniousFusion(**settings()).setup(Fake(), foreign_module(OPTIMIZERS["sgd_momentum"], True), "fit")  # type: ignore[arg-type]
