"""HarmoniousFusion: the paper's Algorithm 1 at each task's end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.processes import rank_zero_mask
from hpa_lightning.callbacks.retention_audit import audit_of, random_columns, record_audit
from hpa_lightning.callbacks.safety_data import settings_of
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.data.tasks import Data
from hpa_lightning.modules.fsdp import cpu_state


@dataclass(frozen=True)
class _Unfused:
    """What a fusion was made of: the tuned tensors on the CPU, the weights before, both kinds of diagonals."""

    tensors: Mapping[str, tuple[Tensor, ...]]
    anchors: Mapping[str, Tensor]
    safety: Mapping[str, Tensor]
    tasks: Mapping[str, Tensor]


class HarmoniousFusion(TaskEndFusion):
    """Fuses the weights before and after a task: post-training HPA.

    At the task's start the safety Hessians are taken from the model as it is then, since the safety knowledge is in
    the old weights; at its end the task Hessians are taken from the tuned model (decision). Then every tuned linear
    layer keeps its retained columns from before the task and gets the rest of the update without
    its component along the old weight. Training itself is untouched.

    With LoRA the fused weight is written into the base weight and the adapter is left empty (B = 0): an adapter-only
    checkpoint is not enough afterwards, since the base weights have changed.

    Hooks: task start and task end (before adapters are merged and before evaluation).
    State: diag(H^-1) of the safety inputs for each layer, the weights before the task (full-parameter tuning only),
    the safety calibration set. Strategies: one device, DDP, FSDP2.
    Source: HPA (arXiv 2511.20158), Algorithm 1.

    Args:
        orthogonal: take the component along the old weight out of the update (step 3).
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        retention: shares and weights, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Raises:
        ValueError: settings that are none.

    Example:
        >>> from hpa_lightning.callbacks import HarmoniousFusion, SequentialTuning
        >>> fusion = HarmoniousFusion(retention={"p_min": 5.0, "p_max": 15.0}, calibration={"safety_samples": 8})
        >>> callbacks = [SequentialTuning(), fusion]             # of a Trainer, over a stream of tasks

    Attributes:
        repeatable: keep what :meth:`fuse_again` needs from the fusion on: a copy of the tuned layers on the CPU.
            :class:`SafetyGate` sets it.
    """

    def __init__(
        self,
        orthogonal: bool = True,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        retention: F.RetentionSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(blocks, target_modules)
        self.calibrator = self.own(Calibrator(self.layers, safety_data, task_data, calibration))
        self.safety_data, self.task_data, self.calibration = safety_data, task_data, self.calibrator.settings
        self.retention = settings_of(F.RetentionSettings, retention, "retention")
        self.orthogonal = orthogonal
        self.repeatable = False
        self._safety: dict[str, Tensor] = {}
        self._unfused: _Unfused | None = None

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._safety = self.calibrator.safety_diagonals(trainer, pl_module)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_resume(trainer, pl_module, task)
        self._safety = self.layers.restored(self._safety, "safety calibration")

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        tasks = self.calibrator.task_diagonals(trainer, pl_module, task)
        if self.repeatable:
            tensors = {
                linear.name: tuple(tensor.to("cpu", copy=True) for tensor in linear.written()) for linear in self.layers
            }
            self._unfused = _Unfused(tensors, self.layers.anchors, self._safety, tasks)
        self._fuse(trainer, task, self._safety, tasks, self.retention)
        self._safety = {}

    @torch.no_grad()
    def fuse_again(
        self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask, retention: F.RetentionSettings
    ) -> None:
        """Fuse the task that has just ended once more, from the weights before and after it, with other shares.

        Needs ``repeatable`` to have been set before the task's end, and no training since.
        """
        if self._unfused is None:
            raise RuntimeError("nothing to fuse again; set `repeatable` before the task ends.")
        unfused = self._unfused
        self.layers.find(pl_module)
        self.layers.place(unfused.anchors)
        for linear in self.layers:
            for tensor, saved in zip(linear.written(), unfused.tensors[linear.name], strict=True):
                tensor.copy_(saved)
        safety, tasks = self.layers.on_devices(unfused.safety), self.layers.on_devices(unfused.tasks)
        try:
            self._fuse(trainer, task, safety, tasks, retention)
            self.broadcast(trainer, pl_module)
        finally:
            self._torn = None  # whatever went wrong, it can be fused again from what is kept
        self.layers.clear()

    def forget(self) -> None:
        """Give up what :meth:`fuse_again` needs."""
        self._unfused = None

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.forget()
        super().on_task_start(trainer, pl_module, task)

    def _fuse(
        self,
        trainer: L.Trainer,
        task: CurrentTask,
        safety: Mapping[str, Tensor],
        tasks: Mapping[str, Tensor],
        retention: F.RetentionSettings,
    ) -> None:
        self.starts_writing("fusing")
        audit = []
        for linear in self.layers:
            fused, entry = F.harmonious_fusion(
                linear.before(),
                linear.after(),
                safety[linear.name],
                tasks[linear.name],
                linear.layer,
                len(self.layers.block_modules),
                retention,
                orthogonal=self.orthogonal,
                generator=random_columns(retention, task, linear),
                broadcast=rank_zero_mask(trainer),
                in_place=True,
            )
            linear.write_(fused)
            audit.append(audit_of(task, linear, entry))
        record_audit(self, trainer, task, audit)

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "safety": cpu_state(self._safety)}
        if self._unfused is not None and self._open_task is not None:
            # Saved on an error between the fusion and the gate, which may have to fuse again.
            of_layers = {key: cpu_state(dict(getattr(self._unfused, key))) for key in ("anchors", "safety", "tasks")}
            state["unfused"] = {"tensors": dict(self._unfused.tensors), **of_layers}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._safety = dict(state_dict["safety"])
        self._unfused = _Unfused(**state_dict["unfused"]) if "unfused" in state_dict else None
