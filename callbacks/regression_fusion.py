"""RegressionFusion: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.hessian_memory import Form, HessianMemory
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.data.tasks import Data


class RegressionFusion(TaskEndFusion):
    """Reduces what a task's update does to the inputs of safety and of earlier tasks, by regression.

    HPA keeps or gives up whole columns, by the diagonal of the inverse Hessians. This takes the whole Hessians: of all
    updates it keeps the one that differs least from the task's on the task's inputs and does least on the safety
    inputs and on those of earlier tasks,

        D' = D H_t (H_t + safety_weight H_s + memory_weight sum_{i<t} H_i)^-1.

    With ``form="sketch"`` the Hessians are sketches of ``rank`` rows, and a diagonal
    (:func:`hpa_lightning.functional.sketched_regression_map`).

    With LoRA it maps A, so that the update keeps the adapter's rank; the result is written into the base weight and the
    adapter is left empty (B = 0): an adapter-only checkpoint is not enough afterwards. Decision: the safety Hessians
    are taken at the task's end with the tuned layers put back to the weights before the task, so that nothing has to be
    held while the task lasts; where norms or embeddings are trained too, these are the trained ones.

    Hooks: task start and task end (before adapters are merged and before evaluation).
    State: the weights before the task (full-parameter tuning only), the earlier tasks' Hessians or sketches, the
    safety calibration set. Strategies: one device, DDP, FSDP2.
    Source: the closed form of RegMean (Jin et al., ICLR 2023) between the weights before and after a task, with HPA's
    calibration sets; the sequence and the memory are this project's.

    Args:
        safety_weight: weight of the safety inputs against the task's own; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        form: ``"sketch"``, or ``"exact"`` for whole Hessians (22 GB for LLaMA-7B).
        rank: rows of a sketch; 384 rows of all inputs of LLaMA-7B are 0.6 GB, in memory and in checkpoints.
        earlier_tasks: with ``form="sketch"``, a file of tasks that were learnt before this fit, which
            ``save_memory`` or ``hpa-lightning fuse --save-memory`` has written; they are protected as those of the fit.
        save_memory: with ``form="sketch"``, a file to be written after every task, for a later fit or fusion.

    Raises:
        ValueError: a weight that is negative or not finite, or a file without ``form="sketch"``.

    Example:
        >>> from hpa_lightning.callbacks import RegressionFusion, SequentialTuning
        >>> callbacks = [SequentialTuning(), RegressionFusion(safety_weight=2.0)]  # of a Trainer
    """

    def __init__(
        self,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        form: Form = "sketch",
        rank: int = 384,
        earlier_tasks: str | Path | None = None,
        save_memory: str | Path | None = None,
    ) -> None:
        super().__init__(blocks, target_modules)
        self.calibrator = self.own(Calibrator(self.layers, safety_data, task_data, calibration))
        self.memory = self.own(
            HessianMemory(self.calibrator, safety_weight, memory_weight, form, rank, earlier_tasks, save_memory)
        )
        self.safety_data, self.task_data, self.calibration = safety_data, task_data, self.calibrator.settings
        self.safety_weight, self.memory_weight = safety_weight, memory_weight
        self.form, self.rank = form, rank
        self.earlier_tasks, self.save_memory = earlier_tasks, save_memory

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.calibrator.safety_batches(trainer, pl_module)  # the first call is answered by the aligned model

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with ExitStack() as before:
            for linear in self.layers:
                before.enter_context(linear.restored())
            batches = self.calibrator.safety_batches(trainer, pl_module)
            safety, first = self.memory.gather(trainer, pl_module, batches, "safety")
        batches = self.calibrator.task_batches(trainer, task)
        tasks, _ = self.memory.gather(trainer, pl_module, batches, "task")
        self.starts_writing("fusing")
        current = ""
        for linear in self.layers:
            if first[linear.name] != current:  # one map at a time: layers that share an input follow each other
                current = first[linear.name]
                mapping = self._map(tasks[current], self.memory.kept(current, safety[current]), pl_module.device)
            before_task, after = linear.before(local=True), linear.after(local=True)
            linear.write_(F.regression_fusion(before_task, after, mapping), local=True)
        self.memory.remember(trainer, pl_module, task, tasks, first)

    def _map(
        self, task: Tensor | F.InputSketch, kept: Tensor | F.InputSketch, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """The map of the updates of layers that share an input."""
        task, kept = task.to(device), kept.to(device)
        if isinstance(task, F.InputSketch) and isinstance(kept, F.InputSketch):
            return F.sketched_regression_map(task, kept, self.calibrator.settings.damping)
        assert isinstance(task, Tensor) and isinstance(kept, Tensor)
        return F.regression_map(task, kept)
