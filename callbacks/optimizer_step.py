"""The base of callbacks that act right after each optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.trainer_checks import require_automatic_optimization


class StepCallback(TaskCallback, ABC):
    """Calls ``after_step`` after every optimizer step that was taken.

    Lightning has no callback hook between the optimizer step and the end of the batch, so this registers torch's step
    post-hook on the trainer's optimizers at each task's start and after a resume. A step that is skipped (fp16 with
    an infinite gradient) does not call it. Order among several: that of ``start_order``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called without gradient tracking right after the weights changed."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            require_automatic_optimization(pl_module, self)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._attach(trainer, pl_module)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._attach(trainer, pl_module)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._detach()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._detach()

    def _attach(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._detach()

        @torch.no_grad()
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.after_step(trainer, pl_module)

        self._handles = [optimizer.register_step_post_hook(hook) for optimizer in trainer.optimizers]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
