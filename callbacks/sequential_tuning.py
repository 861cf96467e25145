"""Sequential tuning: what happens between two tasks whatever the method."""

from __future__ import annotations

from typing import ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.modules.lora import merge_lora_, restart_lora_
from hpa_lightning.modules.moe_lora import has_mixtures


class SequentialTuning(TaskCallback):
    """Starts every task of a stream afresh: LoRA merged and restarted, new optimizer, new scheduler.

    At a task's end the adapters are merged into the base weights in fp32 and a fresh adapter begins; at the next
    task's start the optimizer and the scheduler are rebuilt by ``configure_optimizers``. Without LoRA only the
    latter happens, and with mixtures of LoRA experts too: they cannot be merged, so the same experts and routers are
    tuned on, task after task (MoELoRA). On its own this callback is plain sequential tuning (SeqFT), the baseline of
    every comparison.

    Hooks: task start and resume (before all other task callbacks), task end (after fusion, before evaluation).
    State: none of its own. Strategies: one device, DDP, FSDP2.

    Args:
        seed: the adapters of task t are initialised from ``seed`` and t alone.
        merge_last: also merge after the last task, so that the final model is a plain dense one.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
        >>> callbacks = [SequentialTuning(), TaskEvaluation()]                   # the baseline, scored after every task
    """

    start_order: ClassVar[int] = StartPhase.TUNING
    end_order: ClassVar[int] = EndPhase.MERGING
    handles_task_boundaries: ClassVar[bool] = True

    def __init__(self, seed: int = 0, merge_last: bool = True) -> None:
        super().__init__()
        self.seed = seed
        self.merge_last = merge_last

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if not has_mixtures(pl_module):
            merge_lora_(pl_module)  # an adapter that the user brought along is kept, not lost
            restart_lora_(pl_module, torch.Generator().manual_seed(self.seed * 1_000_003 + task.index))
        if task.index > 0:
            trainer.strategy.setup_optimizers(trainer)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Make the schedule for the task again: Lightning builds it before it knows which epoch continues."""
        if task.index == 0 or not trainer.lr_scheduler_configs:
            return
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        trainer.strategy.setup_optimizers(trainer)
        for optimizer, state in zip(trainer.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)
        for config, schedule in zip(trainer.lr_scheduler_configs, schedules, strict=True):
            config.scheduler.load_state_dict(schedule)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        is_last = task.last_epoch is None or task.last_epoch + 1 >= (trainer.max_epochs or 0)
        if (is_last and not self.merge_last) or has_mixtures(pl_module):
            return
        self.starts_writing("merging the adapters")
        merged = merge_lora_(pl_module)
        if merged:
            rank_zero_info(f"Task {task.index} ({task.name}): merged {merged} LoRA layers into the base weights.")
