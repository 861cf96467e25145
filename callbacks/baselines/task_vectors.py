"""TaskVectorMerging: task arithmetic, TIES and DARE over the updates of all tasks so far."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.reference_weights import ReferenceWeights
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.modules.tuned_linear import TunedLinear


class TaskVectorMerging(TaskEndFusion):
    """Keeps ``W_aligned + merge([D_1, ..., D_t])`` after task t, ``D_i`` being the update that task i made.

    The merged vector is made again after every task from all updates. Decision: the sources
    merge models that were tuned apart from one another; here task t starts from the weights kept after task t - 1, so
    ``D_t`` is its update of those. ``task_arithmetic`` with weight 1 is then sequential tuning, up to rounding.

    Cost: a CPU copy of the tuned layers from before the first task, and for each task its updates in fp32: with LoRA
    the factors, of size ``rank * (in_features + out_features)``; with full-parameter tuning a dense copy of every tuned
    layer for each task. All of it is saved in checkpoints. Merging holds the dense updates of one layer at a time.

    Randomness (dare): the entries that are dropped of ``D_i`` depend on ``seed``, i and the layer's position alone,
    so that every process and a resumed run draw the same (on the same kind of device), and what was dropped of an
    earlier update stays dropped. The global random state is left as it was.

    Hooks: task start and task end (before adapters are merged and before evaluation).
    State: the weights before the first task, the updates of the finished tasks, the weights before the task
    (full-parameter tuning only). Strategies: one device, DDP, FSDP2.
    Source: task arithmetic (arXiv 2212.04089), TIES (arXiv 2306.01708), DARE (arXiv 2311.03099).

    Args:
        method: ``"task_arithmetic"``, ``"ties"``, ``"dare_linear"``, ``"dare_ties"`` or ``"magnitude_prune"``; see
            :func:`hpa_lightning.functional.merge_task_vectors`.
        weight: factor of every update.
        density: share of the entries of each update that is kept, in (0, 1]; not used by ``"task_arithmetic"``.
        seed: of the dare methods.
        majority_sign_method: ``"total"`` or ``"frequency"``, for the methods with TIES.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        normalize, rescale: see :func:`hpa_lightning.functional.merge_task_vectors`; what ``convention`` says when
            ``None``.
        convention: ``"peft"`` or ``"mergekit"``: which program's ``ties``, ``dare_linear`` and ``dare_ties`` are meant.

    Attributes:
        vectors: name -> for each task its update: ``(D,)``, or ``(scaling * B, A)`` with LoRA; fp32 on the CPU.

    Raises:
        ValueError: an unknown method or sign election, a weight that is not finite, a density outside (0, 1].

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import TaskVectorMerging
        >>> callbacks = [SequentialTuning(), TaskVectorMerging("ties", density=0.5)]  # of a Trainer, over a stream
    """

    def __init__(
        self,
        method: F.MergingMethod = "task_arithmetic",
        weight: float = 1.0,
        density: float = 0.5,
        seed: int = 0,
        majority_sign_method: F.MajoritySign = "total",
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        normalize: bool | None = None,
        rescale: F.Rescale | None = None,
        convention: F.MergingConvention = "peft",
    ) -> None:
        super().__init__(blocks, target_modules)
        F.check_merging(method, weight, density, majority_sign_method, rescale, convention)
        self.method = method
        self.weight = weight
        self.density = density
        self.seed = seed
        self.majority_sign_method = majority_sign_method
        self.normalize = normalize
        self.rescale = rescale
        self.convention = convention
        self.aligned = self.own(ReferenceWeights(self.layers))
        self.vectors: dict[str, list[tuple[Tensor, ...]]] = {}

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.aligned.prepare(task)
        if task.index == 0:
            self.vectors = {}

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        updates = {linear.name: self._update(linear) for linear in self.layers}
        self.starts_writing("merging")
        for name, update in updates.items():
            self.vectors.setdefault(name, []).append(update)
        for position, linear in enumerate(self.layers):
            device = linear.weight.device
            merged = F.merge_task_vectors(
                [_dense(vector, device) for vector in self.vectors[linear.name]],
                self.method,
                self.weight,
                self.density,
                self.majority_sign_method,
                self.normalize,
                self.rescale,
                self.convention,
                torch.Generator(device).manual_seed(self.seed * 1_000_003 + position),
            )
            linear.write_(self.aligned.of(linear).float() + merged)

    def _update(self, linear: TunedLinear) -> tuple[Tensor, ...]:
        made = linear.update()
        update: tuple[Tensor, ...]
        update = (made.scaling * made.lora_b.float(), made.lora_a) if isinstance(made, F.LoraUpdate) else (made,)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in update):
            raise ValueError(f"{linear.name}: its update holds values that are not finite; the training has diverged.")
        return tuple(tensor.to("cpu", torch.float32, copy=True) for tensor in update)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "vectors": {name: list(vectors) for name, vectors in self.vectors.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.vectors = {name: [tuple(v) for v in vectors] for name, vectors in state_dict["vectors"].items()}


def _dense(vector: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """The update ``(out_features, in_features)`` on ``device``."""
    on_device = [tensor.to(device) for tensor in vector]
    return on_device[0] if len(on_device) == 1 else F.lora_update(on_device[1], on_device[0])
