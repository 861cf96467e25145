"""OrthogonalProjection: the update never points along the weight before the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import lightning as L
import torch

from hpa_lightning.callbacks.focus_partition import FocusPartition
from hpa_lightning.callbacks.masked_freezing import MaskedFreezing
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.callbacks.task import CurrentTask, required_callback
from hpa_lightning.modules.linears import TunedLinear


class OrthogonalProjection(StepCallback):
    """Projects each layer's update onto the complement of the weight before the task, after every optimizer step.

    Afterwards ``|<W - W_prev, W_prev>| <= 1e-6 ||W - W_prev|| ||W_prev||`` (Frobenius). Projecting gradients instead
    would not hold it: Adam's rescaled step leaves the subspace. With LoRA, B is corrected within the adapter and the
    base weight is only read. Columns frozen by :class:`MaskedFreezing` stay untouched.

    Hooks: task start, the optimizer's step post-hook (after that of :class:`MaskedFreezing`).
    State: none of its own. Strategies: one device, DDP, FSDP2.
    Source: HPA (arXiv 2511.20158), orthogonal adjustment; the in-training form is a decision of this project.
    """

    start_order: ClassVar[int] = 45

    def __init__(self) -> None:
        super().__init__()
        self._projections: list[Callable[[], object]] = []

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_end(trainer, pl_module, task)
        self._projections = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            required_callback(trainer, FocusPartition, self)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_start(trainer, pl_module, task)
        self._prepare(trainer)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_resume(trainer, pl_module, task)
        self._prepare(trainer)

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for project in self._projections:
            project()

    def _prepare(self, trainer: L.Trainer) -> None:
        partition: FocusPartition = required_callback(trainer, FocusPartition, self)
        frozen = any(isinstance(callback, MaskedFreezing) for callback in trainer.callbacks)
        kinds: dict[type[TunedLinear], list[TunedLinear]] = {}
        for linear in partition.linears:
            kinds.setdefault(type(linear), []).append(linear)
        self._projections = [
            kind.projection(
                linears,
                [partition.anchors.get(linear.name) for linear in linears],
                [partition.retained[linear.name] if frozen else None for linear in linears],
            )
            for kind, linears in kinds.items()
        ]
