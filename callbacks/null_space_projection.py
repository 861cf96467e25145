"""NullSpaceProjection: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.hessian_memory import HessianMemory
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import CurrentTask, cpu_state
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.tasks import Data
from hpa_lightning.modules.sharding import own_rows


class NullSpaceProjection(StepCallback):
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
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Raises:
        ValueError: a share outside [0, 1], or a weight that is negative or not finite.

    Example:
        >>> from hpa_lightning.callbacks import NullSpaceProjection, SequentialTuning
        >>> callbacks = [SequentialTuning(), NullSpaceProjection(energy=0.7)]    # of a Trainer, over a stream of tasks
    """

    start_order: ClassVar[int] = StartPhase.SUBSPACE
    end_order: ClassVar[int] = EndPhase.FUSING

    def __init__(
        self,
        energy: float = 0.7,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self, blocks, target_modules))
        self.calibrator = self.own(Calibrator(self.layers, safety_data, task_data, calibration))
        self.memory = self.own(HessianMemory(self, safety_weight, memory_weight))
        self.blocks, self.target_modules = blocks, target_modules
        self.safety_data, self.task_data, self.calibration = safety_data, task_data, self.calibrator.settings
        self.safety_weight, self.memory_weight = safety_weight, memory_weight
        if not 0.0 <= energy <= 1.0:
            raise ValueError(f"energy is {energy}; expected a share of the trace in [0, 1].")
        self.energy = energy
        self._bases: dict[str, Tensor] = {}
        self._first: dict[str, str] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.layers.find(pl_module)
            self.layers.keep_weights()
            batches = self.calibrator.safety_batches(trainer, pl_module)
            safety, self._first = self.calibrator.hessians(trainer, pl_module, batches, "safety")
            for name, kept in self.memory.kept_hessians(safety).items():
                basis = F.dominant_subspace(kept.to(pl_module.device), self.energy)
                # What a rank computes by itself may differ in the last bit from what another one does.
                self._bases[name] = trainer.strategy.broadcast(basis)
        held, all_of_them = (sum(basis.shape[side] for basis in self._bases.values()) for side in (1, 0))
        rank_zero_info(f"Task {task.index} ({task.name}): {held} of {all_of_them} input directions are kept.")
        self.after_step(trainer, pl_module)
        super().on_task_start(trainer, pl_module, task)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.resume(pl_module)
        missing = [linear.name for linear in self.layers if self._first.get(linear.name) not in self._bases]
        if missing:
            raise ValueError(
                f"the checkpoint holds no basis for {missing[:3]}; it was written with other layers under tuning."
            )
        self._bases = self.layers.on_devices(self._bases)
        super().on_task_resume(trainer, pl_module, task)

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for linear in self.layers:
            basis = self._bases[self._first[linear.name]]
            F.null_space_projection_(own_rows(linear.trained), linear.origin(), basis)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_end(trainer, pl_module, task)
        if self.memory_weight > 0:
            with self.timed(trainer, task.index, "calibrate"):
                batches = self.calibrator.task_batches(trainer, task)
                tasks, _ = self.calibrator.hessians(trainer, pl_module, batches, "task")
            self.memory.remember(tasks)
        self._bases, self._first = {}, {}
        self.layers.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "bases": cpu_state(self._bases),
            "first": dict(self._first),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._bases = dict(state_dict["bases"])
        self._first = dict(state_dict["first"])
