"""The base of methods that change the weights once, at a task's end."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from hpa_lightning.callbacks.divergence import check_finite
from hpa_lightning.callbacks.task import CurrentTask, cpu_state
from hpa_lightning.callbacks.tuned_layers import LinearsCallback
from hpa_lightning.modules.sharding import is_sharded


class TaskEndFusion(LinearsCallback):
    """Trains the task as usual and makes the weights that are kept from those before and after it.

    With LoRA the weight before the task is the frozen base weight; the result is written there and the adapter is left
    empty (B = 0), so an adapter-only checkpoint is not enough afterwards. With full-parameter tuning a copy of the
    tuned weights is held while the task lasts, and saved in checkpoints within it.

    Hooks: task start, task end (before adapters are merged and before evaluation).
    State: the weights before the task (full-parameter tuning only). Strategies: one device, DDP, FSDP2.

    Attributes:
        anchors: name -> weight before the task, ``(out_features, in_features)``; empty with LoRA.
    """

    start_order: ClassVar[int] = 30
    end_order: ClassVar[int] = 10
    changes_weights_at_end = True

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.anchors: dict[str, Tensor] = {}

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called at the task's start, when the model is still the one from before."""

    @abstractmethod
    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Write the weights that are kept; called without gradient tracking. Rank zero's are everyone's in the end."""

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.find_linears(pl_module)
            self.anchors = self.take_anchors()
            self.prepare(trainer, pl_module, task)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.find_linears(pl_module)
        self.anchors = self.placed(self.anchors)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "fuse"), torch.no_grad():
            self.fuse(trainer, pl_module, task)
            self.agree(trainer, pl_module)
            check_finite(((linear.name, linear.weight) for linear in self.linears), type(self).__name__)
        rank_zero_info(f"Task {task.index} ({task.name}): fused {len(self.linears)} linear layers.")
        self.anchors = {}
        self.linears.clear()

    def agree(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give all processes rank zero's fused weights: what they computed may differ in the last bit."""
        if trainer.world_size > 1 and not is_sharded(pl_module):
            for linear in self.linears:
                torch.distributed.broadcast(linear.weight.data, src=0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchors": cpu_state(self.anchors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.anchors = dict(state_dict["anchors"])
