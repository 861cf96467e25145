"""The base of methods that change the weights once, at a task's end."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.divergence import check_finite
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.modules.fsdp import is_sharded
from hpa_lightning.trainer_attributes import callbacks_of


class TaskEndFusion(TaskCallback):
    """Trains the task as usual and makes the weights that are kept from those before and after it.

    With LoRA the weight before the task is the frozen base weight; the result is written there and the adapter is left
    empty (B = 0), so an adapter-only checkpoint is not enough afterwards. With full-parameter tuning a copy of the
    tuned weights is held while the task lasts, and saved in checkpoints within it.

    Hooks: task start, task end (before adapters are merged and before evaluation).
    State: the weights before the task (full-parameter tuning only). Strategies: one device, DDP, FSDP2.

    Args:
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        first_block: decoder block from which on layers are treated, counted from 1.

    Raises:
        MisconfigurationException: at the task's start: another fusion of the trainer's treats one of the layers, too.

    Attributes:
        layers: the tuned linear layers, with their weights before the task and after it.
    """

    start_order: ClassVar[int] = StartPhase.MEASURING
    end_order: ClassVar[int] = EndPhase.FUSING
    changes_weights_at_end = True

    def __init__(
        self, blocks: str | None = None, target_modules: list[str] | None = None, first_block: int = 1
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.target_modules = target_modules
        self.layers = self.own(TunedLayers(self, blocks, target_modules, first_block))

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called at the task's start, when the model is still the one from before."""

    @abstractmethod
    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Write the weights that are kept; called without gradient tracking. Rank zero's are everyone's in the end."""

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.layers.find(pl_module)
            self._check_own_layers(trainer)
            self.layers.keep_weights()
            self.prepare(trainer, pl_module, task)

    def _check_own_layers(self, trainer: L.Trainer) -> None:
        """Refuse a layer that another fusion treats: with LoRA the second one would find an empty adapter."""
        own = {linear.name for linear in self.layers}
        others = [one for one in callbacks_of(trainer) if isinstance(one, TaskEndFusion) and one is not self]
        for other in others:
            if both := sorted(own & {linear.name for linear in other.layers}):
                raise MisconfigurationException(
                    f"{type(other).__name__} and {type(self).__name__} both fuse {len(both)} layers at the task's end "
                    f"({', '.join(both[:3])}); expected one fusion of each layer, since the second would get what the "
                    "first has made of the trained weights. Choose one, or give them other target_modules."
                )

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.resume(pl_module)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "fuse"), torch.no_grad():
            self.fuse(trainer, pl_module, task)
            self.broadcast(trainer, pl_module)
            check_finite(((linear.name, linear.weight) for linear in self.layers), type(self).__name__)
        rank_zero_info(f"Task {task.index} ({task.name}): fused {len(self.layers)} linear layers.")
        self.layers.clear()

    def broadcast(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give all processes rank zero's fused weights: what they computed may differ in the last bit."""
        if trainer.world_size > 1 and not is_sharded(pl_module):
            for linear in self.layers:
                torch.distributed.broadcast(linear.weight.data, src=0)
