"""Sequential tuning: what happens between two tasks whatever the method."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.modules.lora import merge_lora_, restart_lora_
from hpa_lightning.modules.moe_lora import has_mixtures
from hpa_lightning.modules.osf import has_osf, merge_osf_, osf_tensors, restart_osf_


class SequentialTuning(TaskCallback):
    """Starts every task of a stream afresh: LoRA merged and restarted, new optimizer, new scheduler.

    At a task's end the adapters are merged into the base weights in fp32 and a fresh adapter begins; at the next
    task's start the optimizer and the scheduler are rebuilt by ``configure_optimizers``. Without LoRA only the
    latter happens, and with mixtures of LoRA experts too: they cannot be merged, so the same experts and routers are
    tuned on, task after task (MoELoRA). With OSF what was trained is merged as peft merges it, and the weights are
    decomposed anew at the next task's start. On its own this callback is plain sequential tuning (SeqFT), the baseline
    of every comparison.

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
        if has_osf(pl_module):
            self._restart_osf(trainer, pl_module, task)
        elif not has_mixtures(pl_module):
            if task.index == 0:
                self._warn_of_starts(pl_module)
            merge_lora_(pl_module)  # an adapter that the user brought along is kept, not lost
            restart_lora_(pl_module, torch.Generator().manual_seed(self.seed * 1_000_003 + task.index))
        if task.index > 0:
            trainer.strategy.setup_optimizers(trainer)

    def _warn_of_starts(self, pl_module: L.LightningModule) -> None:
        """Adapters that were to start in a way of their own do not, in any task."""
        configs: list[Any] = [module.peft_config for module in pl_module.modules() if hasattr(module, "peft_config")]
        every = {getattr(one, "init_lora_weights", True) for config in configs for one in config.values()}
        if asked := sorted(start for start in every if isinstance(start, str)):
            rank_zero_warn(
                f"init_lora_weights is {', '.join(map(repr, asked))}: SequentialTuning merges what the adapters hold "
                "into the base weights and starts every task with a Kaiming-uniform A and B = 0."
            )

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
        osf = has_osf(pl_module)
        merged = merge_osf_(pl_module) if osf else merge_lora_(pl_module)
        if merged:
            kind = "OSF" if osf else "LoRA"
            rank_zero_info(f"Task {task.index} ({task.name}): merged {merged} {kind} layers into the base weights.")

    @staticmethod
    def _restart_osf(trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        merge_osf_(pl_module)
        if not (restarted := restart_osf_(pl_module)):
            return
        rank_zero_info(f"Task {task.index} ({task.name}): decomposed the weights of {restarted} OSF layers anew.")
        if trainer.world_size > 1:  # singular vectors have no sign of their own
            for tensor in osf_tensors(pl_module):
                dist.broadcast(tensor, src=0)
