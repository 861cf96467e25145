"""LinearMerging: back towards the safe weights by a fixed share at each task's end."""

from __future__ import annotations

from typing import Literal

import lightning as L

from hpa_lightning import functional as F
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.reference_weights import ReferenceWeights
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion


class LinearMerging(TaskEndFusion):
    """Keeps ``(1 - share) W_task + share W_reference`` of every tuned linear layer.

    Hooks: task start and task end (before adapters are merged and before evaluation).
    State: the weights before the first task (``"aligned"``), the weights before the task (full-parameter tuning only).
    Strategies: one device, DDP, FSDP2.
    Source: "How Does Vision-Language Adaptation Impact the Safety of Vision Language Models?" (arXiv 2410.07571, ICLR
    2025), which merges a task-tuned with a safety-tuned model once. Decision: in a stream it is done after every task.

    Args:
        share: share of the reference in [0, 1]: 0 keeps the tuned weights, 1 gives the reference, both exactly.
        reference: ``"aligned"``: the weights before the first task; one copy of the tuned layers is kept on the CPU.
            ``"before_task"``: the weights before this task; no copy with LoRA.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Raises:
        ValueError: a share outside [0, 1] or an unknown reference.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import LinearMerging
        >>> callbacks = [SequentialTuning(), LinearMerging(share=0.2)]           # of a Trainer, over a stream of tasks
    """

    def __init__(
        self,
        share: float = 0.2,
        reference: Literal["aligned", "before_task"] = "aligned",
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(blocks, target_modules)
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share is {share}; expected the reference's share of the weights, in [0, 1].")
        if reference not in ("aligned", "before_task"):
            raise ValueError(f"reference is {reference!r}; expected 'aligned' or 'before_task'.")
        self.share = share
        self.reference = reference
        self.aligned = self.own(ReferenceWeights(self.layers))

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if self.reference == "aligned":
            self.aligned.prepare(task)

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.starts_writing("merging")
        for linear in self.layers:
            reference = self.aligned.of(linear) if self.reference == "aligned" else linear.before()
            linear.write_(F.merge_linearly(linear.dense_after(), reference, self.share))
