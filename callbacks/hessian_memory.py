"""The part of a callback that weighs the inputs of safety and of earlier tasks, and remembers the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from hpa_lightning.calibration.earlier_tasks import EarlierTasks, check_memory, model_type_of
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.remembered_inputs import RememberedInputs
from hpa_lightning.functional import InputSketch
from hpa_lightning.functional.sketched_regression import kept_sketch, remembered_sketch

Form = Literal["sketch", "exact"]


class HessianMemory(Part):
    """Hessians of the safety inputs and of earlier tasks as one, weighed: sketches of them, or whole.

    Earlier tasks are remembered as the sum of their Hessians, not as samples. A sketch holds ``rank`` rows of
    ``in_features`` bfloat16 numbers for each distinct layer input, on the CPU, whatever the number of tasks, and no
    ``c x c`` matrix is formed of more than ``4 rank`` columns; the exact form holds ``(in_features, in_features)`` in
    fp32. LLaMA-7B geometry has 745,472 columns: 1.5 MB for each row of rank, 22 GB in the exact form.

    What is remembered may come from a file that an earlier fit, or ``hpa-lightning fuse``, has written, and be written
    to one (:class:`hpa_lightning.calibration.earlier_tasks.EarlierTasks`): a task that is learnt in another fit, on
    another machine, is protected like one of the same stream.

    Layers that share an input share its memory, also where an earlier task tuned others of them. A task that tunes
    layers whose inputs no earlier task has left is told in a warning before it trains; with ``save_memory``, whose file
    would not hold what it says, it is an error.

    State: ``"memory"``, that sum; ``"remembered"``, the names of its tasks; ``"remembered_as"``, every layer of them ->
    the layer under whose name its input stands in the sum; ``"from_file"``, whether it began with a file of earlier
    tasks: a fit that did not cannot be given one when it continues; ``"memory_file"``, the file that it writes. A
    checkpoint of the exact form is taken into sketches when it is loaded.

    Args:
        calibrator: gathers the inputs; those of its layers are remembered.
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        form: ``"sketch"`` or ``"exact"``.
        rank: rows of a sketch; all columns where a layer has fewer.
        earlier_tasks: a file to begin with, read before the first task.
        save_memory: a file to write after every task; one that exists is refused, unless this fit has written it.
        damped: of the exact form, whether the Hessians are damped as ``calibration`` says; sketches never are.

    Raises:
        ValueError: a weight that is negative or not finite, another form, a rank below 1, or a file with
            ``form="exact"`` or without a memory.
    """

    follows: Mapping[str, str] = {
        name: name for name in ("safety_weight", "memory_weight", "form", "rank", "earlier_tasks", "save_memory")
    }

    def __init__(
        self,
        calibrator: Calibrator,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        form: Form = "sketch",
        rank: int = 192,
        earlier_tasks: str | Path | None = None,
        save_memory: str | Path | None = None,
        damped: bool = True,
    ) -> None:
        super().__init__(calibrator.owner)
        self.calibrator, self.layers = calibrator, calibrator.layers
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
        self.damped = damped
        self.inputs = RememberedInputs()
        self._remembered: list[str] | None = None  # names of tasks; None: the file of earlier tasks is still to be read
        self._from_file = False
        self._file: str | None = None  # that this fit writes: it may exist

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if self._remembered is None and self.earlier_tasks is not None:
            self.layers.find(pl_module)
            self._read(pl_module)  # a file that does not fit is refused before anything is trained
            self.layers.clear()
        if self.save_memory is not None and self.inputs.sums:
            self.layers.find(pl_module)
            missing = sorted(self.inputs.sums.keys() - {linear.name for linear in self.layers})
            self.layers.clear()
            if missing:
                raise MisconfigurationException(
                    f"{self.caller}: earlier tasks are remembered at {len(missing)} layers that are not tuned in task "
                    f"{task.name!r} ({', '.join(missing[:3])}), and save_memory writes the layers under tuning. Tune "
                    "the same layers in all tasks, or leave out save_memory."
                )
        self._check_new_layers(task)
        self._claim_file()

    def gather(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any], what: str
    ) -> tuple[dict[str, Tensor] | dict[str, InputSketch], dict[str, str]]:
        """What the batches are to the layers in this memory's form; see :meth:`Calibrator.hessians`."""
        if self.form == "exact":
            hessians, first = self.calibrator.hessians(trainer, pl_module, batches, what, self.damped)
            self.inputs.join(first, self.rank)
            return hessians, first
        held, first = self.calibrator.sketches(trainer, pl_module, batches, what, self.rank)
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
                        self.inputs.sums[linear.name] = remembered_sketch(None, sketch, self.rank)
                self.inputs.places = dict(first)
                rank_zero_info(
                    f"{self.caller}: {self.earlier_tasks} remembers {len(earlier.tasks)} earlier tasks: "
                    f"{', '.join(earlier.tasks)}."
                )
        self.inputs.join(first, self.rank)
        return held, first

    def kept(
        self, name: str, safety: Tensor | InputSketch, per_safety: float = 1.0, per_memory: float = 1.0
    ) -> Tensor | InputSketch:
        """``safety_weight H_s + memory_weight sum_i H_i`` over the earlier tasks i, for one distinct input.

        Of sketches nothing is lost here: the sum has the rows of both.

        Args:
            name: of the input.
            safety: ``H_s``, in this memory's form.
            per_safety, per_memory: factors of the weights, for this input.
        """
        safety_weight, memory_weight = self.safety_weight * per_safety, self.memory_weight * per_memory
        earlier = self.inputs.of(name)
        if isinstance(safety, Tensor):
            kept = safety_weight * safety
            return kept + memory_weight * earlier if isinstance(earlier, Tensor) else kept
        assert not isinstance(earlier, Tensor)
        return kept_sketch(safety, earlier, safety_weight, memory_weight, self.rank)

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
        self.inputs.add(tasks, first, self.rank)
        self._remembered = [*(self._remembered or []), task.name]
        if self.save_memory is not None and trainer.is_global_zero:
            names = {linear.name: linear.name_in_blocks for linear in self.layers}
            EarlierTasks(
                {names[name]: sketch for name, sketch in self.inputs.sums.items() if isinstance(sketch, InputSketch)},
                {names[name]: names[self.inputs.places[name]] for name in first},
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

    def _check_new_layers(self, task: CurrentTask) -> None:
        """Say which layers of this task share no input with a layer of an earlier one."""
        new = self.inputs.lacking(self.calibrator.sharing)
        if not new:
            return
        told = (
            f"{self.caller}: {len(new)} layers are tuned in task {task.name!r} and were in no task before it "
            f"({', '.join(new[:3])}{', ...' if new[3:] else ''}): what the earlier tasks feed them is not remembered, "
            "so that nothing protects those tasks there. "
        )
        if self.save_memory is not None:
            raise MisconfigurationException(
                told + "The file of save_memory would not say so: tune the same layers in all tasks, or leave it out."
            )
        rank_zero_warn(told + "Tune the same layers in all tasks if it matters.")

    def _claim_file(self) -> None:
        """Refuse a file that exists and that this fit has not written."""
        if self.save_memory is None:
            return
        file = str(Path(self.save_memory).absolute())
        if file != self._file and Path(file).exists():
            raise MisconfigurationException(
                f"{self.caller}: save_memory={str(self.save_memory)!r} exists already; name another file, or remove "
                "it: this fit has not written it."
            )
        self._file = file

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.inputs.state_dict(),
            "remembered": self._remembered,
            "from_file": self._from_file,
            "memory_file": self._file,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._remembered = state_dict.get("remembered", [])  # older checkpoints know no names
        self._from_file = state_dict.get("from_file", False)
        self._file = state_dict.get("memory_file")
        self._claim_file()
        if self.earlier_tasks is not None and self._remembered is not None and not self._from_file:
            raise MisconfigurationException(
                f"{self.caller}: earlier_tasks is {str(self.earlier_tasks)!r}, and the checkpoint is of a fit that "
                "began without such a file, which would not be read any more. Continue without it, or begin anew."
            )
        whole = any(isinstance(saved, Tensor) for saved in state_dict["memory"].values())
        if self.form == "exact" and state_dict["memory"] and not whole:
            raise MisconfigurationException(
                f"{self.caller}: the checkpoint remembers earlier tasks as sketches, from which whole Hessians "
                "cannot be made; continue with form='sketch'."
            )
        self.inputs = RememberedInputs.from_state(state_dict, self.rank if self.form == "sketch" else None)
        if self.form == "sketch" and whole:
            rank_zero_info(
                f"{self.caller}: the full Hessians of the checkpoint were compressed to sketches of rank {self.rank}."
            )
