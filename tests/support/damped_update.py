"""A method as somebody else would write it, in one file of their own: a function on tensors and a callback for it.

Not imported by the package; `tests/callbacks/test_plugin.py` loads it from its path and runs the guarantee tests on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning.callbacks import CurrentTask
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion


@torch.no_grad()
def damp_update(weight_prev: Tensor, weight_new: Tensor, safety_diagonal: Tensor, strength: float) -> Tensor:
    """Shrink the update of every input column, the more the more the safety inputs use it.

    Column j of the update is multiplied by ``h_j / (h_j + strength * mean(h))``, ``h = diag(H_s^-1)``.

    Args:
        weight_prev: weight before the task, ``(out_features, in_features)``, any floating dtype.
        weight_new: weight after it, same shape, any floating dtype.
        safety_diagonal: ``diag(H_s^-1)``, ``(in_features,)``, positive.
        strength: 0 keeps the update as it is.

    Returns:
        ``(out_features, in_features)``, float32.
    """
    free = safety_diagonal / (safety_diagonal + strength * safety_diagonal.mean())
    return weight_prev.float() + free * (weight_new.float() - weight_prev.float())


class DampedUpdate(TaskEndFusion):
    """Shrinks each column's update by what safety inputs make of it.

    Args:
        strength: how much.
        safety_data: harmful inputs with refusals.
        calibration: sizes and damping.
    """

    def __init__(
        self, strength: float = 1.0, safety_data: Iterable[Any] | None = None, calibration: Any = None
    ) -> None:
        super().__init__()
        self.calibrator = self.own(Calibrator(self.layers, safety_data, settings=calibration, needs_task_data=False))
        self.safety_data, self.calibration = safety_data, self.calibrator.settings
        self.strength = strength

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        diagonals = self.calibrator.safety_diagonals(trainer, pl_module)
        self.starts_writing("damping")
        for linear in self.layers:
            linear.write_(damp_update(linear.before(), linear.dense_after(), diagonals[linear.name], self.strength))
