"""RegressionFusion: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import lightning as L
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibrated import CalibratedCallback, CalibrationSettings
from hpa_lightning.callbacks.fusing import TaskEndFusion
from hpa_lightning.callbacks.task import CurrentTask, cpu_state


class RegressionFusion(TaskEndFusion, CalibratedCallback):
    """Bends a task's update away from the inputs of safety and of earlier tasks, in all directions of input space.

    HPA keeps or gives up whole columns, by the diagonal of the inverse Hessians. This takes the whole Hessians: of all
    updates it keeps the one that differs least from the task's on the task's inputs and does least on the safety
    inputs and on those of earlier tasks,

        D' = D H_t (H_t + safety_weight H_s + memory_weight sum_{i<t} H_i)^-1.

    With LoRA it maps A and stays within the adapter's rank. Earlier tasks are remembered as Hessians, not as samples:
    one ``(in_features, in_features)`` fp32 matrix on the CPU for each distinct layer input. Decision: the safety
    Hessians are taken at the task's end with the tuned layers put back to the weights before the task, so that nothing
    has to be held while the task lasts; where norms or embeddings are trained too, these are the trained ones.

    Hooks: task start and task end (before adapters are merged and before evaluation).
    State: the weights before the task (full-parameter tuning only), the earlier tasks' Hessians, the safety
    calibration set. Strategies: one device, DDP.
    Source: the closed form of RegMean (Jin et al., ICLR 2023) between the weights before and after a task, with HPA's
    calibration sets; the sequence and the memory are this project's.

    Args:
        safety_weight: weight of the safety inputs against the task's; 0 leaves safety out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        safety_data, task_data, calibration, blocks, target_modules: see :class:`CalibratedCallback`.
    """

    def __init__(
        self,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(safety_data, task_data, calibration, blocks, target_modules)
        for name, value in (("safety_weight", safety_weight), ("memory_weight", memory_weight)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        self.safety_weight = safety_weight
        self.memory_weight = memory_weight
        self._memory: dict[str, Tensor] = {}

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.safety_batches(trainer, pl_module)  # the first call is answered by the aligned model

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with ExitStack() as before:
            for linear in self.linears:
                before.enter_context(linear.put_back(self.anchors.get(linear.name)))
            safety, first = self.hessians(trainer, pl_module, self.safety_batches(trainer, pl_module), "safety")
        tasks, _ = self.hessians(trainer, pl_module, self.task_batches(trainer, task), "task")
        maps = {}
        for name, hessian in tasks.items():
            kept = self.safety_weight * safety[name]
            if name in self._memory:
                kept += self.memory_weight * self._memory[name]
            device = pl_module.device
            maps[name] = F.regression_map(hessian.to(device), kept.to(device))
        for linear in self.linears:
            linear.map_update_(self.anchors.get(linear.name), maps[first[linear.name]])
        if self.memory_weight > 0:
            self._memory = {name: self._memory.get(name, 0.0) + hessian for name, hessian in tasks.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "memory": cpu_state(self._memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._memory = dict(state_dict["memory"])
