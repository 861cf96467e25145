"""The part of a callback that weighs the inputs of safety and of earlier tasks, and remembers the latter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.task import TaskCallback, cpu_state


class HessianMemory(Part):
    """Hessians of the safety inputs and of earlier tasks as one, weighed.

    Earlier tasks are remembered as the sum of their Hessians, not as samples: one ``(in_features, in_features)`` fp32
    matrix on the CPU for each distinct layer input, whatever the number of tasks.

    State: ``"memory"``, that sum.

    Args:
        owner: the callback.
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    follows: ClassVar[dict[str, str]] = {name: name for name in ("safety_weight", "memory_weight")}

    def __init__(self, owner: TaskCallback, safety_weight: float = 1.0, memory_weight: float = 1.0) -> None:
        super().__init__(owner)
        for name, value in (("safety_weight", safety_weight), ("memory_weight", memory_weight)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        self.safety_weight = safety_weight
        self.memory_weight = memory_weight
        self._sums: dict[str, Tensor] = {}

    def kept_hessians(self, safety: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``safety_weight H_s + memory_weight sum_i H_i`` over the earlier tasks i, for each distinct input."""
        kept = {name: self.safety_weight * hessian for name, hessian in safety.items()}
        for name, hessian in self._sums.items():
            kept[name] += self.memory_weight * hessian
        return kept

    def remember(self, tasks: Mapping[str, Tensor]) -> None:
        """Add a finished task's Hessians."""
        if self.memory_weight > 0:
            self._sums = {name: self._sums.get(name, 0.0) + hessian for name, hessian in tasks.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": cpu_state(self._sums)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = dict(state_dict["memory"])
