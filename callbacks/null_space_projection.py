"""NullSpaceProjection: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibrator import CalibrationSettings
from hpa_lightning.callbacks.hessian_memory import RememberingCallback
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.callbacks.task import CurrentTask, cpu_state


class NullSpaceProjection(StepCallback, RememberingCallback):
    """Keeps every update out of the directions that the safety inputs, and those of earlier tasks, live in.

    At a task's start the Hessians of the safety inputs are gathered from the model as it is then; for each layer the
    eigenvectors ``U`` are taken that hold ``energy`` of the trace of ``safety_weight H_s + memory_weight sum_{i<t}
    H_i``. From then on the update is projected after every optimizer step, ``D <- D (I - U U^T)``: what the layer does
    to inputs along ``U`` does not change, and training goes around them. With LoRA that is exactly
    ``A <- A (I - U U^T)``.

    Hooks: task start, the optimizer's step post-hook, task end (the task's Hessian, before adapters are merged).
    State: the bases, the weights before the task (full-parameter tuning only), the earlier tasks' Hessians, the
    safety calibration set. Strategies: one device, DDP, FSDP2.
    Source: gradient projection memory (Saha et al., ICLR 2021) on HPA's calibration sets; projecting the weights'
    update instead of the gradient is this project's, since Adam's step leaves the subspace.

    Args:
        energy: share of the trace that is kept from changing, in [0, 1].
        safety_weight, memory_weight, safety_data, task_data, calibration, blocks, target_modules: see
            :class:`RememberingCallback`.
    """

    start_order: ClassVar[int] = 35
    end_order: ClassVar[int] = 10

    def __init__(
        self,
        energy: float = 0.7,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(safety_weight, memory_weight, safety_data, task_data, calibration, blocks, target_modules)
        if not 0.0 <= energy <= 1.0:
            raise ValueError(f"energy is {energy}; expected a share of the trace in [0, 1].")
        self.energy = energy
        self._anchors: dict[str, Tensor] = {}
        self._bases: dict[str, Tensor] = {}
        self._first: dict[str, str] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.find_linears(pl_module)
            self._anchors = self.take_anchors()
            batches = self.safety_batches(trainer, pl_module)
            safety, self._first = self.hessians(trainer, pl_module, batches, "safety")
            for name, kept in self.kept_hessians(safety).items():
                basis = F.dominant_subspace(kept.to(pl_module.device), self.energy)
                # What a rank computes by itself may differ in the last bit from what another one does.
                self._bases[name] = trainer.strategy.broadcast(basis)
        held, all_of_them = (sum(basis.shape[side] for basis in self._bases.values()) for side in (1, 0))
        rank_zero_info(f"Task {task.index} ({task.name}): {held} of {all_of_them} input directions are kept.")
        self.after_step(trainer, pl_module)
        super().on_task_start(trainer, pl_module, task)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.find_linears(pl_module)
        missing = [linear.name for linear in self.linears if self._first.get(linear.name) not in self._bases]
        if missing:
            raise ValueError(
                f"the checkpoint holds no basis for {missing[:3]}; it was written with other layers under tuning."
            )
        self._bases = self.on_devices(self._bases)
        self._anchors = self.placed(self._anchors)
        super().on_task_resume(trainer, pl_module, task)

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for linear in self.linears:
            linear.leave_subspace_(self._anchors.get(linear.name), self._bases[self._first[linear.name]])

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_end(trainer, pl_module, task)
        if self.memory_weight > 0:
            with self.timed(trainer, task.index, "calibrate"):
                tasks, _ = self.hessians(trainer, pl_module, self.task_batches(trainer, task), "task")
            self.remember(tasks)
        self._anchors, self._bases, self._first = {}, {}, {}
        self.linears.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "anchors": cpu_state(self._anchors),
            "bases": cpu_state(self._bases),
            "first": dict(self._first),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._anchors, self._bases = dict(state_dict["anchors"]), dict(state_dict["bases"])
        self._first = dict(state_dict["first"])
