"""The part of a callback that weighs the inputs of safety and of earlier tasks, and remembers the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from hpa_lightning.calibration.earlier_tasks import EarlierTasks, check_memory, model_type_of
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.functional import InputSketch
from hpa_lightning.functional.sketched_regression import kept_sketch
from hpa_lightning.modules.fsdp import cpu_state

Form = Literal["sketch", "exact"]


class HessianMemory(Part):
    """Hessians of the safety inputs and of earlier tasks as one, weighed: sketches of them, or whole.

    Earlier tasks are remembered as the sum of their Hessians, not as samples. A sketch holds ``rank`` rows of
    ``in_features`` bfloat16 numbers for each distinct layer input, on the CPU, whatever the number of tasks, and no
    ``c x c`` matrix is ever formed; the exact form holds ``(in_features, in_features)`` in fp32. LLaMA-7B geometry has
    745,472 columns: 1.5 MB for each row of rank, 22 GB in the exact form.

    What is remembered may come from a file that an earlier fit, or ``hpa-lightning fuse``, has written, and be written
    to one (:class:`hpa_lightning.calibration.earlier_tasks.EarlierTasks`): a task that is learnt in another fit, on
    another machine, is protected like one of the same stream.

    State: ``"memory"``, that sum; ``"remembered"``, the names of its tasks; ``"from_file"``, whether it began with a
    file of earlier tasks: a fit that did not cannot be given one when it continues. A checkpoint of the exact form is
    taken into sketches when it is loaded.

    Args:
        layers: whose inputs are remembered.
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        form: ``"sketch"`` or ``"exact"``.
        rank: rows of a sketch; all columns where a layer has fewer.
        earlier_tasks: a file to begin with, read before the first task.
        save_memory: a file to write after every task; one that exists is refused before the first.

    Raises:
        ValueError: a weight that is negative or not finite, another form, a rank below 1, or a file with
            ``form="exact"`` or without a memory.
    """

    follows: ClassVar[dict[str, str]] = {
        name: name for name in ("safety_weight", "memory_weight", "form", "rank", "earlier_tasks", "save_memory")
    }

    def __init__(
        self,
        layers: TunedLayers,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        form: Form = "exact",
        rank: int = 192,
        earlier_tasks: str | Path | None = None,
        save_memory: str | Path | None = None,
    ) -> None:
        super().__init__(layers.owner)
        self.layers = layers
        check_memory(safety_weight, memory_weight, rank)
        if form not in ("sketch", "exact"):
            raise ValueError(f"form is {form!r}; expected 'sketch' or 'exact'.")
        for name, path in (("earlier_tasks", earlier_tasks), ("save_memory", save_memory)):
            if path is not None and (form != "sketch" or memory_weight == 0):
                has = "form='exact'" if form != "sketch" else "memory_weight=0"
                raise ValueError(
                    f"{name} is {str(path)!r} with {has}; expected form='sketch' and a memory_weight above 0."
                )
        self.safety_weight = safety_weight
        self.memory_weight = memory_weight
        self.form: Form = form
        self.rank = rank
        self.earlier_tasks = earlier_tasks
        self.save_memory = save_memory
        self._sums: dict[str, Tensor] = {}
        self._sketches: dict[str, InputSketch] = {}
        self._remembered: list[str] | None = None  # names of tasks; None: the file of earlier tasks is still to be read
        self._from_file = False

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if self._remembered is None and self.earlier_tasks is not None:
            self.layers.find(pl_module)
            self._read(pl_module)  # a file that does not fit is refused before anything is trained
            self.layers.clear()
        if self.save_memory is not None and self._sketches:
            self.layers.find(pl_module)
            missing = sorted(self._sketches.keys() - {linear.name for linear in self.layers})
            self.layers.clear()
            if missing:
                raise MisconfigurationException(
                    f"{self.caller}: earlier tasks are remembered at {len(missing)} layers that are not tuned in task "
                    f"{task.name!r} ({', '.join(missing[:3])}), and save_memory writes the layers under tuning. Tune "
                    "the same layers in all tasks, or leave out save_memory."
                )
        if self._remembered is None and self.save_memory is not None and Path(self.save_memory).exists():
            raise MisconfigurationException(
                f"{self.caller}: save_memory={str(self.save_memory)!r} exists already; name another file, or remove it."
            )

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
        held, first = calibrator.sketches(trainer, pl_module, batches, what, self.rank)
        if self._remembered is None:
            self._remembered = []
            if self.earlier_tasks is not None:
                earlier = self._read(pl_module)
                self._remembered, self._from_file = list(earlier.tasks), True
                if self.save_memory is not None and (lost := earlier.lost(self.earlier_tasks, self.save_memory)):
                    rank_zero_warn(f"{self.caller}: {lost}")
                for linear in self.layers:
                    if linear.name in held:
                        sketch = earlier.sketches[linear.name_in_blocks]  # other layers may have the same one
                        self._sketches[linear.name] = sketch.scaled(1.0, self.rank)
                        self._sketches[linear.name].round_()
                rank_zero_info(
                    f"{self.caller}: {self.earlier_tasks} remembers {len(earlier.tasks)} earlier tasks: "
                    f"{', '.join(earlier.tasks)}."
                )
        return held, first

    def kept(self, name: str, safety: Tensor | InputSketch) -> Tensor | InputSketch:
        """``safety_weight H_s + memory_weight sum_i H_i`` over the earlier tasks i, for one distinct input.

        Of sketches nothing is lost here: the sum has the rows of both.
        """
        if isinstance(safety, Tensor):
            kept = self.safety_weight * safety
            return kept + self.memory_weight * self._sums[name] if name in self._sums else kept
        return kept_sketch(safety, self._sketches.get(name), self.safety_weight, self.memory_weight, self.rank)

    def remember(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        task: CurrentTask,
        tasks: Mapping[str, Tensor] | Mapping[str, InputSketch],
        first: Mapping[str, str],
    ) -> None:
        """Add a finished task's Hessians, as :meth:`gather` returned them, and write the file if there is one to write.

        Raises:
            OSError: the file cannot be written.
        """
        if self.memory_weight == 0:
            return
        self._add(tasks)
        self._remembered = [*(self._remembered or []), task.name]
        if self.save_memory is not None and trainer.is_global_zero:
            names = {linear.name: linear.name_in_blocks for linear in self.layers}
            EarlierTasks(
                {names[name]: sketch for name, sketch in self._sketches.items()},
                {names[name]: names[leader] for name, leader in first.items()},
                len(self.layers.block_modules),
                tuple(self._remembered),
                model_type_of(pl_module),
            ).write(self.save_memory)

    def _read(self, pl_module: L.LightningModule) -> EarlierTasks:
        assert self.earlier_tasks is not None
        widths = {linear.name_in_blocks: linear.in_features for linear in self.layers}
        try:
            return EarlierTasks.read(
                self.earlier_tasks, widths, len(self.layers.block_modules), model_type_of(pl_module)
            )
        except ValueError as error:
            raise MisconfigurationException(f"{self.caller}: {error}") from error

    def _add(self, tasks: Mapping[str, Tensor] | Mapping[str, InputSketch]) -> None:
        for name, task in tasks.items():
            if isinstance(task, Tensor):
                self._sums[name] = self._sums[name] + task if name in self._sums else task
                continue
            task.to("cpu")
            held = self._sketches.setdefault(name, InputSketch(task.columns, min(self.rank, task.columns)))
            held.merge(task)
            held.round_()

    def state_dict(self) -> dict[str, Any]:
        remembered = {"remembered": self._remembered, "from_file": self._from_file}
        if self.form == "exact":
            return {"memory": cpu_state(self._sums), **remembered}
        return {"memory": {name: sketch.state_dict() for name, sketch in self._sketches.items()}, **remembered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._sketches = {}, {}
        self._remembered = state_dict.get("remembered", [])  # older checkpoints know no names
        self._from_file = state_dict.get("from_file", False)
        if self.earlier_tasks is not None and self._remembered is not None and not self._from_file:
            raise MisconfigurationException(
                f"{self.caller}: earlier_tasks is {str(self.earlier_tasks)!r}, and the checkpoint is of a fit that "
                "began without such a file, which would not be read any more. Continue without it, or begin anew."
            )
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
                    "cannot be made; continue with form='sketch'."
                )
        if self._sketches and isinstance(next(iter(state_dict["memory"].values())), Tensor):
            rank_zero_info(
                f"{self.caller}: the full Hessians of the checkpoint were compressed to sketches of rank {self.rank}."
            )

    def _sketch_of(self, hessian: Tensor) -> InputSketch:
        """The sketch of a whole Hessian, which a checkpoint of the exact form holds."""
        sketch = InputSketch.from_gram(hessian, min(self.rank, len(hessian)))
        sketch.round_()
        return sketch
