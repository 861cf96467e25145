"""SafeDelta: accept the part of an update that costs safety least."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.baselines.brain_surgeon_fusion import fuse_by_surgeon
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.data.tasks import Data


class SafeDelta(TaskEndFusion):
    """Accepts tuned weights within a safety budget and lets the others compensate: Safe Delta.

    At the task's end the safety Hessians are taken through the model from before the task, whose outputs on safety
    inputs are what is held. In every tuned linear layer the entries of the least sensitive columns take the tuned
    value until the budget is spent; the others keep the earlier value plus the compensation
    (:func:`hpa_lightning.functional.safe_delta`). Training itself is untouched.

    Decision: over a stream, "the safe model" of a task is the model before that task; the paper treats one fine-tuning
    of an aligned model. Decision: the safety data are harmful inputs with the refusals that the aligned model gave
    before the first task. Decision: parameters that are tuned but not treated (embeddings, norms, biases) are the
    tuned ones in the calibration pass, as they are in the model that is kept.

    Hooks: task start (the refusals), task end (before adapters are merged and before evaluation).
    State: the safety calibration set; the weights before the task (full-parameter tuning only).
    Strategies: one device, DDP, FSDP2.
    Source: Lu et al., Safe Delta (ICML 2025, arXiv 2505.12038).

    Args:
        budget: the paper's s, ``>= 0``; 0 takes the whole update back, infinity accepts all of it.
        protected_percent: percent of the entries, those of the most sensitive columns, that are never accepted.
        block_size: columns that share one budget.
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        columns_at_once, costs_after_compensation: see :func:`hpa_lightning.functional.safe_delta`; 4 and True are the
            authors' code.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import SafeDelta
        >>> callbacks = [SequentialTuning(), SafeDelta(budget=0.1)]              # of a Trainer, over a stream of tasks
    """

    def __init__(
        self,
        budget: float = 0.1,
        protected_percent: float = 15.0,
        block_size: int = 2048,
        safety_data: Data | Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        columns_at_once: int = 1,
        costs_after_compensation: bool = False,
    ) -> None:
        super().__init__(blocks, target_modules)
        calibrator = Calibrator(self.layers, safety_data, settings=calibration, needs_task_data=False)
        self.calibrator = self.own(calibrator)
        self.safety_data, self.calibration = safety_data, calibrator.settings
        if not budget >= 0:
            raise ValueError(f"budget is {budget}; expected a number >= 0.")
        if not 0.0 <= protected_percent <= 100.0:
            raise ValueError(f"protected_percent is {protected_percent}; expected a percentage in [0, 100].")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; expected at least 1 column.")
        if columns_at_once < 1 or block_size % columns_at_once:
            raise ValueError(
                f"columns_at_once is {columns_at_once}; expected at least 1, and a divisor of block_size, {block_size}."
            )
        self.budget = budget
        self.protected_percent = protected_percent
        self.block_size = block_size
        self.columns_at_once = columns_at_once
        self.costs_after_compensation = costs_after_compensation

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.calibrator.safety_batches(trainer, pl_module)  # before the first task the aligned model gives its refusals

    def _fused(self, before: Tensor, after: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return F.safe_delta(
            before,
            after,
            factor,
            self.budget,
            self.protected_percent,
            self.block_size,
            self.columns_at_once,
            self.costs_after_compensation,
        )

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        batches = self.calibrator.safety_batches(trainer, pl_module)
        fuse_by_surgeon(self.calibrator, trainer, pl_module, task, batches, "safety", self._fused, before_task=True)
