"""What a fusion of two checkpoints computes: one class for each method, over the functions of `functional`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.calibration import shared_inverse_diagonals
from hpa_lightning.calibration.earlier_tasks import EarlierTasks, check_memory
from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.functional import HessianAccumulator, InputSketch, RetentionSettings
from hpa_lightning.functional.sketched_regression import kept_sketch, remembered_sketch
from hpa_lightning.modules.tuned_linear import TunedLinear


class FusionMethod(ABC):
    """A method that makes new weights of the weights before and after tuning and of what calibration has found."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the result beside models, data and calibration; the audit holds it."""

    @abstractmethod
    def accumulate(self, columns: int) -> Any:
        """What takes in the inputs of a layer with so many columns."""

    @abstractmethod
    def found(self, accumulators: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is kept of one block's inputs, for :meth:`fuse`; layers that share an input share an accumulator."""

    @abstractmethod
    def fuse(
        self,
        layer: TunedLinear,
        blocks: int,
        old: Tensor,
        new: Tensor,
        safety: Mapping[str, Tensor],
        task: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Any]]:
        """The layer's weight `(out_features, in_features)` float32, and its audit.

        Args:
            layer: whose weight it is.
            blocks: number of decoder blocks.
            old, new: weights before and after, `(out_features, in_features)`, on the device that computes.
            safety, task: what :meth:`found` returned for the layer's block.

        Raises:
            ValueError: what the functions raise.
        """


class HarmoniousMethod(FusionMethod):
    """HPA (arXiv 2511.20158), Algorithm 1: see :func:`hpa_lightning.functional.harmonious_fusion`.

    Args:
        retention: shares and weights.
        orthogonal: take the component along the old weight out of the update (step 3).
        damping, normalized: of the Hessians.
    """

    def __init__(self, retention: RetentionSettings, orthogonal: bool, damping: float, normalized: bool) -> None:
        self.retention = retention
        self.orthogonal = orthogonal
        self._damping, self._normalized = damping, normalized

    @property
    def settings(self) -> dict[str, Any]:
        return {"retention": dataclasses.asdict(self.retention), "orthogonal": self.orthogonal}

    def accumulate(self, columns: int) -> HessianAccumulator:
        return HessianAccumulator(columns, damping=self._damping)

    def found(self, accumulators: Mapping[str, HessianAccumulator]) -> dict[str, Tensor]:
        """diag(H^-1) of each layer."""
        shared = shared_inverse_diagonals(accumulators, self._normalized)
        return {name: diagonal.clone() for name, diagonal in shared.items()}  # a file holds no shared memory

    def fuse(
        self,
        layer: TunedLinear,
        blocks: int,
        old: Tensor,
        new: Tensor,
        safety: Mapping[str, Tensor],
        task: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Any]]:
        return F.harmonious_fusion(
            old,
            new,
            safety[layer.name].to(old.device),
            task[layer.name].to(old.device),
            layer.layer,
            blocks,
            self.retention,
            orthogonal=self.orthogonal,
            generator=named_generator(self.retention.seed, "random columns", layer.name),
        )


class RegressionMethod(FusionMethod):
    """Regression fusion on sketches: see :func:`hpa_lightning.functional.sketched_regression_map`.

    Args:
        safety_weight: weight of the safety inputs against the task's own.
        memory_weight: weight of each earlier task's inputs.
        rank: rows of a sketch; all columns where a layer has fewer.
        damping: of the Hessians.
        earlier: what is remembered of earlier tasks, by the layers' names within the decoder blocks.

    Raises:
        ValueError: a negative or infinite weight, or a rank below 1.
    """

    def __init__(
        self,
        safety_weight: float,
        memory_weight: float,
        rank: int,
        damping: float,
        earlier: EarlierTasks | None = None,
    ) -> None:
        check_memory(safety_weight, memory_weight, rank)
        self.safety_weight = safety_weight
        self.memory_weight = memory_weight
        self.rank = rank
        self.earlier = earlier
        self._damping = damping
        self._map: tuple[str, Callable[[Tensor], Tensor]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "safety weight": self.safety_weight,
            "memory weight": self.memory_weight,
            "rank": self.rank,
            "earlier tasks": list(self.earlier.tasks) if self.earlier is not None else [],
        }

    def accumulate(self, columns: int) -> InputSketch:
        return InputSketch(columns, min(self.rank, columns))

    def found(self, accumulators: Mapping[str, InputSketch]) -> dict[str, Tensor]:
        """A sketch of ``H = (2/n) X^T X`` for each distinct input, under the names of all its layers."""
        shared: dict[int, list[str]] = {}
        for name, accumulator in accumulators.items():
            shared.setdefault(id(accumulator), []).append(name)
        tensors = {}
        for names in shared.values():
            sketch = accumulators[names[0]]
            if sketch.count == 0:
                raise ValueError(f"{names[0]}: no calibration rows were seen: every position is padding.")
            for part, tensor in sketch.scaled(2.0 / sketch.count).state_dict().items():
                tensors[f"{_AND.join(names)}/{part}"] = tensor
        return tensors

    def fuse(
        self,
        layer: TunedLinear,
        blocks: int,
        old: Tensor,
        new: Tensor,
        safety: Mapping[str, Tensor],
        task: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Any]]:
        names, safety_sketch = _sketch_of(layer.name, safety)
        if self._map is None or self._map[0] != names[0]:  # one at a time: layers that share an input follow each other
            earlier = None if self.earlier is None else self.earlier.sketches[layer.name_in_blocks]
            kept = kept_sketch(safety_sketch, earlier, self.safety_weight, self.memory_weight, self.rank)
            _, task_sketch = _sketch_of(layer.name, task)
            mapping = F.sketched_regression_map(task_sketch.to(old.device), kept.to(old.device), self._damping)
            self._map = names[0], mapping
        weight = F.regression_fusion(old, new, self._map[1])
        made, kept_update = F.dense_update(old, new), weight - old.float()
        rows = safety_sketch.rows.to(old.device)
        return weight, {
            "update_norm": float(made.norm()),
            "kept_of_update": _share(kept_update, made),
            "safety_action_left": _share(rows @ kept_update.T, rows @ made.T),
        }


_AND = "|"


def _sketch_of(name: str, tensors: Mapping[str, Tensor]) -> tuple[list[str], InputSketch]:
    """The names of the layers that share a layer's input, and its sketch."""
    for key in tensors:
        joined, _, part = key.rpartition("/")
        if part == "rows" and name in joined.split(_AND):
            state = {part: tensors[f"{joined}/{part}"] for part in ("rows", "diagonal", "numbers")}
            return joined.split(_AND), InputSketch.from_state(state)
    raise ValueError(f"calibration has found nothing of {name}.")


def _share(part: Tensor, whole: Tensor) -> float:
    """`||part|| / ||whole||`; 0 where both are 0."""
    norm = float(whole.norm())
    return float(part.norm()) / norm if norm > 0 else 0.0


@torch.no_grad()
def with_task(
    earlier: EarlierTasks | None,
    name: str,
    layers: Mapping[str, TunedLinear],
    found: Mapping[str, Tensor],
    blocks: int,
    model_type: str,
    rank: int,
) -> EarlierTasks:
    """What is to be remembered after a task.

    Args:
        earlier: what was remembered before.
        name: the task's.
        layers: all fused layers by name.
        found: :meth:`RegressionMethod.found` of all blocks on the task's data.
        blocks, model_type: of the model.
        rank: of the sketches.
    """
    sketches, first = {}, {}
    for layer_name, layer in layers.items():
        sharing, task = _sketch_of(layer_name, found)
        leader = layers[sharing[0]].name_in_blocks
        first[layer.name_in_blocks] = leader
        if leader == layer.name_in_blocks:
            sketches[leader] = remembered_sketch(earlier.sketches[leader] if earlier else None, task, rank)
    return EarlierTasks(sketches, first, blocks, (*(earlier.tasks if earlier else ()), name), model_type)
