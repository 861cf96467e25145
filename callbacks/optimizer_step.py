"""The base of callbacks that act right after each optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.trainer_checks import require_automatic_optimization, require_step_hooks

_ROUNDING = 8.0
"""Of a tensor's own precision, by norm: what keeping once more may change where nothing else has written."""


class StepCallback(TaskCallback, ABC):
    """Calls ``after_step`` after every optimizer step that was taken.

    Lightning has no callback hook between the optimizer step and the end of the batch, so this registers torch's step
    post-hook on the trainer's optimizers at each task's start and after a resume. A step that is skipped (fp16 with
    an infinite gradient) does not call it; an optimizer that calls no hooks is refused. Order among several: that of
    ``start_order``.
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

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        require_step_hooks(trainer, self)
        super().on_task_open(trainer, pl_module, task)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._attach(trainer, pl_module)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._attach(trainer, pl_module)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._detach()

    def keep_again(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        task: CurrentTask,
        tensors: Mapping[str, Tensor],
        among: Collection[str] | None = None,
        row_norm: float = 0.0,
    ) -> None:
        """Call ``after_step`` at a task's end, and warn where that changes more than rounding does.

        The weights then differ from those that the last step left: something other than the optimizer wrote them. A
        layer that nothing else wrote stays as the last step left it, to the last bit.

        Args:
            trainer, pl_module, task: of the fit.
            tensors: layer -> this process's rows of what ``after_step`` writes.
            among: the layers that are told of, where ``after_step`` may change others, too; all when ``None``.
            row_norm: what the rows' norms count as at least, where next to nothing may be left of them but rounding.
        """
        before = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        self.after_step(trainer, pl_module)
        differs = torch.tensor(
            [_differ(tensors[name], kept, row_norm) for name, kept in before.items()], device=pl_module.device
        )
        differs = trainer.strategy.reduce(differs.float(), reduce_op="sum")
        moved = [name for name, count in zip(before, differs.tolist(), strict=True) if count]
        for name in before.keys() - moved:
            tensors[name].copy_(before[name])
        moved = [name for name in moved if among is None or name in among]
        if moved:
            rank_zero_warn(
                f"Task {task.index} ({task.name}): {type(self).__name__} found {len(moved)} layers "
                f"({', '.join(moved[:3])}{', ...' if moved[3:] else ''}) otherwise than it left them after the last "
                "optimizer step: they were written by something other than the optimizer. What it promises holds again "
                "for the weights as they are now, but they are those that something else wrote, and part of the task "
                "may have been trained with others. Remove what writes weights within the task (averages of weights)."
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._detach()

    def _attach(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._detach()
        require_step_hooks(trainer, self)  # they may be others since the task was opened

        @torch.no_grad()
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.after_step(trainer, pl_module)

        self._handles = [optimizer.register_step_post_hook(hook) for optimizer in trainer.optimizers]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _differ(tensor: Tensor, before: Tensor, row_norm: float) -> bool:
    """Whether a tensor differs from what it was by more than rounding."""
    before = before.to(tensor.device)
    change, size = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (tensor - before, before))
    size = size.clamp(min=row_norm * len(before) ** 0.5)
    return bool(change > _ROUNDING * torch.finfo(tensor.dtype).eps * size)
