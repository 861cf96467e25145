"""The base of fusing methods that go back to the aligned model after every task."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from hpa_lightning.callbacks.task import CurrentTask
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion


class AlignedFusion(TaskEndFusion):
    """Keeps the weights from before the first task on the CPU and in checkpoints: one copy of the tuned layers.

    Attributes:
        aligned: name -> weight before the first task, ``(out_features, in_features)``, on the CPU; not to be changed.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.aligned: dict[str, Tensor] = {}

    def needs_aligned(self) -> bool:
        """Whether the copy is kept at all."""
        return True

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if not self.needs_aligned():
            return
        if task.index == 0:
            self.aligned = {
                linear.name: linear.weight_before(self.anchors.get(linear.name)).detach().to("cpu", copy=True)
                for linear in self.linears
            }
        unknown = [linear.name for linear in self.linears if linear.name not in self.aligned]
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no weights from before the first task for {unknown[:3]}; the run was "
                "resumed from a checkpoint without this callback, or other layers are tuned than in the first task. "
                "Run the whole stream with it, on the same layers."
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "aligned": dict(self.aligned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.aligned = dict(state_dict["aligned"])
