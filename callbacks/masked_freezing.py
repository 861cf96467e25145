"""MaskedFreezing: the retained columns do not move while the task is trained."""

from __future__ import annotations

from typing import ClassVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from hpa_lightning import functional as F
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.focus_partition import FocusPartition
from hpa_lightning.callbacks.kept_weights import bit_sum
from hpa_lightning.callbacks.null_space_projection import NullSpaceProjection
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.trainer_checks import required_callback
from hpa_lightning.modules.fsdp import local_tensor
from hpa_lightning.trainer_attributes import callbacks_of


class MaskedFreezing(StepCallback):
    """Freezes the columns that :class:`FocusPartition` retained, bit for bit.

    The columns' gradients are zeroed before the optimizer step and before clipping, so that the clipping norm ignores
    them; after the step the columns are copied back. Only the copy holds for every optimizer: weight decay and stale
    momentum move a column without a gradient. With LoRA the columns of A are zero from the task's start, where B = 0
    and the model's function does not change, so ``(B A)[:, j] = 0`` exactly.

    What something else than the optimizer has written there is put back at the task's end, with a warning.

    Hooks: task start, task end, ``on_before_optimizer_step``, the optimizer's step post-hook.
    State: none of its own (the masks are :class:`FocusPartition`'s). Strategies: one device, DDP, FSDP2.
    Source: HPA (arXiv 2511.20158), the retained columns of its Algorithm 1; freezing them while the task is trained is
    a decision of this project.

    Raises:
        MisconfigurationException: before the fit: not exactly one :class:`FocusPartition`, a
            :class:`NullSpaceProjection`, or manual optimization.

    Example:
        >>> from hpa_lightning.callbacks import FocusPartition, MaskedFreezing
        >>> callbacks = [FocusPartition(probe_steps=8), MaskedFreezing()]                   # of a Trainer
    """

    start_order: ClassVar[int] = StartPhase.FREEZING
    end_order: ClassVar[int] = EndPhase.RESTORING
    uses_partition: ClassVar[bool] = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            required_callback(trainer, FocusPartition, self)
            if any(isinstance(callback, NullSpaceProjection) for callback in callbacks_of(trainer)):
                raise MisconfigurationException(
                    "MaskedFreezing beside NullSpaceProjection: columns that are set to zero behind the projection "
                    "bring back what it took from the update, step after step. Use one of the two."
                )

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_start(trainer, pl_module, task)
        self.after_step(trainer, pl_module)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        partition: FocusPartition = required_callback(trainer, FocusPartition, self)
        before = [int(bit_sum(linear.trained)) for linear in partition.layers]
        self.after_step(trainer, pl_module)
        moved = [
            linear.name
            for linear, bits in zip(partition.layers, before, strict=True)
            if int(bit_sum(linear.trained)) != bits
        ]
        if moved:
            rank_zero_warn(
                f"Task {task.index} ({task.name}): the frozen columns of {len(moved)} layers ({', '.join(moved[:3])}) "
                "were written by something other than the optimizer. They are restored to their values from before the "
                "task, but part of the task was trained with other values."
            )
        super().on_task_end(trainer, pl_module, task)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        partition: FocusPartition = required_callback(trainer, FocusPartition, self)
        for linear in partition.layers:
            if linear.trained.grad is not None:
                F.zero_columns_(local_tensor(linear.trained.grad), partition.retained[linear.name])

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        partition: FocusPartition = required_callback(trainer, FocusPartition, self)
        for linear in partition.layers:
            F.freeze_columns_(local_tensor(linear.trained), linear.origin(), partition.retained[linear.name])
