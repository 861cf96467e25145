"""The base of methods that keep an update away from the inputs of safety and of earlier tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from hpa_lightning.callbacks.calibrator import CalibratedCallback, CalibrationSettings
from hpa_lightning.callbacks.task import cpu_state


class RememberingCallback(CalibratedCallback):
    """Weighs the Hessians of the safety inputs and of earlier tasks, which it remembers.

    Earlier tasks are remembered as the sum of their Hessians, not as samples: one ``(in_features, in_features)`` fp32
    matrix on the CPU for each distinct layer input, whatever the number of tasks.

    Args:
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        safety_data, task_data, calibration, blocks, target_modules: see :class:`CalibratedCallback`.
    """

    def __init__(
        self,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(safety_data, task_data, calibration, blocks, target_modules)
        for name, value in (("safety_weight", safety_weight), ("memory_weight", memory_weight)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        self.safety_weight = safety_weight
        self.memory_weight = memory_weight
        self._memory: dict[str, Tensor] = {}

    def kept_hessians(self, safety: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``safety_weight H_s + memory_weight sum_i H_i`` over the earlier tasks i, for each distinct input."""
        kept = {name: self.safety_weight * hessian for name, hessian in safety.items()}
        for name, hessian in self._memory.items():
            kept[name] += self.memory_weight * hessian
        return kept

    def remember(self, tasks: Mapping[str, Tensor]) -> None:
        """Add a finished task's Hessians."""
        if self.memory_weight > 0:
            self._memory = {name: self._memory.get(name, 0.0) + hessian for name, hessian in tasks.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "memory": cpu_state(self._memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._memory = dict(state_dict["memory"])
