"""ModelTailor: keep the few tuned weights that the task needs most."""

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


class ModelTailor(TaskEndFusion):
    """Keeps the tuned weights that matter most to the task, with compensation, and returns the rest: Model Tailor.

    At the task's end the task Hessians are taken through the tuned model, whose outputs on task inputs are what is
    held. In every tuned linear layer the share of entries with the largest score stays tuned and makes up for the
    others, which return to their value before the task (:func:`hpa_lightning.functional.model_tailor`). Training
    itself is untouched and no safety data are needed.

    Decision: the weights before the task take the place of the paper's pre-trained ones in every task of a stream.

    Hooks: task start, task end (before adapters are merged and before evaluation).
    State: the weights before the task (full-parameter tuning only). Strategies: one device, DDP, FSDP2.
    Source: Zhu et al., Model Tailor (ICML 2024, arXiv 2402.12048).

    Args:
        keep_percent: percent of the entries that stay tuned.
        mix: share of the change's size in the score, in [0, 1]; the rest is the saliency's.
        block_size: columns within which scores are normalised and compared.
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        first_block: decoder block from which on layers are treated, counted from 1; those before keep their tuned
            weights. The authors' code: 21 of 32.
        scores_after_compensation, compensation: see :func:`hpa_lightning.functional.model_tailor`; True and -1 are the
            authors' code, with ``mix=0.8``.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import ModelTailor
        >>> callbacks = [SequentialTuning(), ModelTailor(keep_percent=10.0)]     # of a Trainer, over a stream of tasks
    """

    def __init__(
        self,
        keep_percent: float = 10.0,
        mix: float = 0.5,
        block_size: int = 128,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        first_block: int = 1,
        scores_after_compensation: bool = False,
        compensation: float = 1.0,
    ) -> None:
        if first_block < 1:
            raise ValueError(f"first_block is {first_block}; expected a decoder block, counted from 1.")
        super().__init__(blocks, target_modules, first_block)
        calibrator = Calibrator(self.layers, task_data=task_data, settings=calibration, needs_safety_data=False)
        self.calibrator = self.own(calibrator)
        self.task_data, self.calibration = task_data, calibrator.settings
        if not 0.0 <= keep_percent <= 100.0:
            raise ValueError(f"keep_percent is {keep_percent}; expected a percentage in [0, 100].")
        if not 0.0 <= mix <= 1.0:
            raise ValueError(f"mix is {mix}; expected a share in [0, 1].")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; expected at least 1 column.")
        if not abs(compensation) < float("inf"):
            raise ValueError(f"compensation is {compensation}; expected a finite factor.")
        self.keep_percent = keep_percent
        self.mix = mix
        self.block_size = block_size
        self.first_block = first_block
        self.scores_after_compensation = scores_after_compensation
        self.compensation = compensation

    def _fused(self, before: Tensor, after: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return F.model_tailor(
            before,
            after,
            factor,
            self.keep_percent,
            self.mix,
            self.block_size,
            self.scores_after_compensation,
            self.compensation,
        )

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        batches = self.calibrator.task_batches(trainer, task)
        fuse_by_surgeon(self.calibrator, trainer, pl_module, task, batches, "task", self._fused, before_task=False)
