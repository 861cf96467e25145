"""OrthogonalProjection: the update never points along the weight before the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import lightning as L
import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.focus_partition import FocusPartition
from hpa_lightning.callbacks.masked_freezing import MaskedFreezing
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.trainer_checks import required_callback
from hpa_lightning.modules.fsdp import gather_all, local_tensor, sum_over_rows
from hpa_lightning.modules.tuned_linear import FullLinear, LoraLinear
from hpa_lightning.trainer_attributes import callbacks_of


class OrthogonalProjection(StepCallback):
    """Projects each layer's update onto the complement of the weight before the task, after every optimizer step.

    Afterwards ``|<W - W_prev, W_prev>| <= 1e-6 ||W - W_prev|| ||W_prev||`` (Frobenius). Projecting gradients instead
    would not hold it: Adam's rescaled step leaves the subspace. With LoRA, B is corrected within the adapter and the
    base weight is only read. Columns frozen by :class:`MaskedFreezing` stay untouched.

    What something else than the optimizer has written since the last step is projected at the task's end, with a
    warning.

    Hooks: task start, task end, the optimizer's step post-hook; the last two after those of :class:`MaskedFreezing`.
    State: none of its own. Strategies: one device, DDP, FSDP2.
    Source: HPA (arXiv 2511.20158), orthogonal adjustment; the in-training form is a decision of this project.

    Raises:
        MisconfigurationException: before the fit: not exactly one :class:`FocusPartition`, or manual optimization.

    Example:
        >>> from hpa_lightning.callbacks import FocusPartition, OrthogonalProjection
        >>> callbacks = [FocusPartition(probe_steps=8), OrthogonalProjection()]                   # of a Trainer
    """

    start_order: ClassVar[int] = StartPhase.PROJECTING
    end_order: ClassVar[int] = EndPhase.RESTORING
    uses_partition: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._projections: list[Callable[[], object]] = []

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        partition: FocusPartition = required_callback(trainer, FocusPartition, self)
        # The last of the written tensors is the one that is trained and corrected: the weight, or LoRA's B.
        self.keep_again(trainer, pl_module, task, {linear.name: linear.written()[-1] for linear in partition.layers})
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
        frozen = any(isinstance(callback, MaskedFreezing) for callback in callbacks_of(trainer))
        full = [linear for linear in partition.layers if isinstance(linear, FullLinear)]
        adapters = [linear for linear in partition.layers if isinstance(linear, LoraLinear)]
        self._projections = [full_projection(full, partition.retained if frozen else {})] if full else []
        self._projections += [lora_projection(adapters)] if adapters else []


def full_projection(linears: Sequence[FullLinear], retained: Mapping[str, Tensor]) -> Callable[[], object]:
    """Prepare what takes from the weights, after a step, whatever their updates have along the weights before the task.

    Args:
        linears: of one fit; each process corrects its own rows.
        retained: masks of frozen columns, by layer.

    Returns:
        To be called after every optimizer step; it causes no host synchronisation.
    """
    before = [linear.before(local=True) for linear in linears]
    masks = [retained.get(linear.name) for linear in linears]
    project = F.UpdateProjection(before, masks, sum_over_rows([linear.weight for linear in linears]))
    return lambda: project([local_tensor(linear.weight) for linear in linears])


def lora_projection(linears: Sequence[LoraLinear]) -> Callable[[], object]:
    """The same for adapters: B is corrected, and columns of A that are 0 stay 0."""
    reduce = sum_over_rows([linear.weight for linear in linears])

    def project() -> None:
        factors = [linear.factors for linear in linears]
        directions = gather_all([f.lora_a for f in factors])
        pairs = zip(factors, directions, strict=True)
        tensors = [F.LoraTensors(local_tensor(f.lora_b), a, local_tensor(f.weight)) for f, a in pairs]
        F.project_lora_updates_(tensors, reduce)

    return project
