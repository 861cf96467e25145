"""The part of a callback that weighs the inputs of safety and of earlier tasks, and remembers the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.task import TaskCallback, cpu_state
from hpa_lightning.functional import InputSketch

Form = Literal["sketch", "exact"]


class HessianMemory(Part):
    """Hessians of the safety inputs and of earlier tasks as one, weighed: sketches of them, or whole.

    Earlier tasks are remembered as the sum of their Hessians, not as samples. A sketch holds ``rank`` rows of
    ``in_features`` bfloat16 numbers for each distinct layer input, on the CPU, whatever the number of tasks, and no
    ``c x c`` matrix is ever formed; the exact form holds ``(in_features, in_features)`` in fp32. LLaMA-7B geometry has
    745,472 columns: 1.5 MB for each row of rank, 22 GB in the exact form.

    State: ``"memory"``, that sum. A checkpoint of the exact form is taken into sketches when it is loaded.

    Args:
        owner: the callback.
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        form: ``"sketch"`` or ``"exact"``.
        rank: rows of a sketch; all columns where a layer has fewer.

    Raises:
        ValueError: a weight that is negative or not finite, another form, or a rank below 1.
    """

    follows: ClassVar[dict[str, str]] = {name: name for name in ("safety_weight", "memory_weight", "form", "rank")}

    def __init__(
        self,
        owner: TaskCallback,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        form: Form = "exact",
        rank: int = 192,
    ) -> None:
        super().__init__(owner)
        for name, value in (("safety_weight", safety_weight), ("memory_weight", memory_weight)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        if form not in ("sketch", "exact"):
            raise ValueError(f"form is {form!r}; expected 'sketch' or 'exact'.")
        if rank < 1:
            raise ValueError(f"rank is {rank}; expected at least 1 row for each layer input.")
        self.safety_weight = safety_weight
        self.memory_weight = memory_weight
        self.form: Form = form
        self.rank = rank
        self._sums: dict[str, Tensor] = {}
        self._sketches: dict[str, InputSketch] = {}

    def gather(
        self,
        calibrator: Calibrator,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Sequence[Any],
        what: str,
    ) -> tuple[dict[str, Tensor] | dict[str, InputSketch], dict[str, str]]:
        """What the batches are to the layers in this memory's form; see :meth:`Calibrator.hessians`."""
        if self.form == "exact":
            return calibrator.hessians(trainer, pl_module, batches, what)
        return calibrator.sketches(trainer, pl_module, batches, what, self.rank)

    def kept(self, name: str, safety: Tensor | InputSketch) -> Tensor | InputSketch:
        """``safety_weight H_s + memory_weight sum_i H_i`` over the earlier tasks i, for one distinct input.

        Of sketches nothing is lost here: the sum has the rows of both.
        """
        if isinstance(safety, Tensor):
            kept = self.safety_weight * safety
            return kept + self.memory_weight * self._sums[name] if name in self._sums else kept
        total = safety.scaled(self.safety_weight, rank=2 * self.rank)
        if name in self._sketches:
            total.merge(self._sketches[name], self.memory_weight)
        return total

    def remember(self, tasks: Mapping[str, Tensor] | Mapping[str, InputSketch]) -> None:
        """Add a finished task's Hessians."""
        if self.memory_weight == 0:
            return
        for name, task in tasks.items():
            if isinstance(task, Tensor):
                self._sums[name] = self._sums[name] + task if name in self._sums else task
                continue
            task.to("cpu")
            held = self._sketches.setdefault(name, InputSketch(task.columns, min(self.rank, task.columns)))
            held.merge(task)
            held.round_()

    def state_dict(self) -> dict[str, Any]:
        if self.form == "exact":
            return {"memory": cpu_state(self._sums)}
        return {"memory": {name: sketch.state_dict() for name, sketch in self._sketches.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._sketches = {}, {}
        for name, saved in state_dict["memory"].items():
            if isinstance(saved, Tensor) and self.form == "exact":
                self._sums[name] = saved
            elif isinstance(saved, Tensor):
                self._sketches[name] = self._sketch_of(saved)
            elif self.form == "sketch":
                sketch = InputSketch.from_state(saved)
                rank = min(self.rank, sketch.columns)
                self._sketches[name] = sketch if sketch.rank == rank else sketch.scaled(1.0, rank)
            else:
                raise MisconfigurationException(
                    f"{self.caller}: the checkpoint remembers earlier tasks as sketches, from which whole Hessians "
                    "cannot be made; go on with form='sketch'."
                )
        if self._sketches and isinstance(next(iter(state_dict["memory"].values())), Tensor):
            rank_zero_info(
                f"{self.caller}: the whole Hessians of the checkpoint were made sketches of rank {self.rank}."
            )

    def _sketch_of(self, hessian: Tensor) -> InputSketch:
        """The sketch of a whole Hessian, which a checkpoint of the exact form holds."""
        sketch = InputSketch.from_gram(hessian, min(self.rank, len(hessian)))
        sketch.round_()
        return sketch
