"""RegressionFusion: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

from contextlib import ExitStack

import lightning as L

from hpa_lightning import functional as F
from hpa_lightning.callbacks.hessian_memory import RememberingCallback
from hpa_lightning.callbacks.task import CurrentTask
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion


class RegressionFusion(TaskEndFusion, RememberingCallback):
    """Bends a task's update away from the inputs of safety and of earlier tasks, in all directions of input space.

    HPA keeps or gives up whole columns, by the diagonal of the inverse Hessians. This takes the whole Hessians: of all
    updates it keeps the one that differs least from the task's on the task's inputs and does least on the safety
    inputs and on those of earlier tasks,

        D' = D H_t (H_t + safety_weight H_s + memory_weight sum_{i<t} H_i)^-1.

    With LoRA it maps A, so that the update keeps the adapter's rank; the result is written into the base weight and the
    adapter is left empty (B = 0): an adapter-only checkpoint is not enough afterwards. Decision: the safety Hessians
    are taken at the task's end with the tuned layers put back to the weights before the task, so that nothing has to be
    held while the task lasts; where norms or embeddings are trained too, these are the trained ones.

    Hooks: task start and task end (before adapters are merged and before evaluation).
    State: the weights before the task (full-parameter tuning only), the earlier tasks' Hessians, the safety
    calibration set. Strategies: one device, DDP, FSDP2.
    Source: the closed form of RegMean (Jin et al., ICLR 2023) between the weights before and after a task, with HPA's
    calibration sets; the sequence and the memory are this project's.

    Args:
        safety_weight, memory_weight: weights of the safety inputs and of each earlier task's, against the task's own.
        safety_data, task_data, calibration, blocks, target_modules: see :class:`RememberingCallback`.
    """

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.safety_batches(trainer, pl_module)  # the first call is answered by the aligned model

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with ExitStack() as before:
            for linear in self.linears:
                before.enter_context(linear.put_back(self.anchors.get(linear.name)))
            safety, first = self.hessians(trainer, pl_module, self.safety_batches(trainer, pl_module), "safety")
        tasks, _ = self.hessians(trainer, pl_module, self.task_batches(trainer, task), "task")
        maps = {
            name: F.regression_map(tasks[name].to(pl_module.device), kept.to(pl_module.device))
            for name, kept in self.kept_hessians(safety).items()
        }
        self.starts_writing("fusing")
        for linear in self.linears:
            linear.map_update_(self.anchors.get(linear.name), maps[first[linear.name]])
        self.remember(tasks)
