"""The part of a callback that calibrates: Hessians of the tuned layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor
from tqdm.auto import tqdm

from hpa_lightning.calibration import Accumulator, inverse_hessian_diagonals, visit_inputs
from hpa_lightning.callbacks.batches import run_training_step
from hpa_lightning.callbacks.calibration_data import CalibrationData, CalibrationSettings, Positions
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.running import evaluation_mode, forward_context, leaving_no_trace
from hpa_lightning.callbacks.safety_data import naming_data
from hpa_lightning.callbacks.trainer_checks import require_automatic_optimization
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.needs import calibration_stream
from hpa_lightning.data.tasks import Data
from hpa_lightning.functional import HessianAccumulator, InputSketch
from hpa_lightning.modules.fsdp import is_sharded, reshard_


class Calibrator(CalibrationData):
    """Runs the model over safety and task data and gathers the Hessians of its linear layers.

    Before a task begins, and before the first one before anything is evaluated, the safety calibration set is made and
    one batch of each kind goes the way that they all go at the task's end: what cannot be calibrated with is reported
    then.

    State: see :class:`CalibrationData`.

    Args:
        layers: whose inputs are looked at.
        safety_data, task_data, settings, safety_positions: see :class:`CalibrationData`.
        needs_safety_data, needs_task_data: which of the two the callback calibrates with.
    """

    def __init__(
        self,
        layers: TunedLayers,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        settings: CalibrationSettings | Mapping[str, Any] | None = None,
        needs_safety_data: bool = True,
        needs_task_data: bool = True,
        safety_positions: Positions = "all",
    ) -> None:
        super().__init__(layers.owner, safety_data, task_data, settings, needs_safety_data, safety_positions)
        self.layers = layers
        self.needs_task_data = needs_task_data
        self.sharing: dict[str, str] = {}
        """Every tuned layer -> the first one with the same input, as the batch before this task has shown it."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Calibration calls training_step, which would step the optimizers.
        require_automatic_optimization(pl_module, self.owner)
        super().setup(trainer, pl_module)
        if self.needs_task_data and self.task_data is None:
            calibration_stream(trainer, self.caller)

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.owner.timed(trainer, task.index, "prepare"):
            self.layers.find(pl_module)
            self.sharing = {}

            def note(accumulators: Mapping[str, HessianAccumulator]) -> None:
                list(_distinct(accumulators, self.sharing))

            if self.needs_safety_data:
                self.visit_hessians(trainer, pl_module, self.safety_batches(trainer, pl_module)[:1], "safety", note)
            if self.needs_task_data:
                self.visit_hessians(trainer, pl_module, self.task_batches(trainer, task, 1)[:1], "task", note)
            self.layers.clear()

    def inverse_diagonals(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any], what: str
    ) -> dict[str, Tensor]:
        """diag(H^-1) of every tuned layer's inputs over ``batches``, with a progress bar over the blocks."""
        with self._running(trainer, pl_module, what) as options:
            damping, normalized = self.settings.damping, self.settings.normalized
            return inverse_hessian_diagonals(batches=batches, normalized=normalized, damping=damping, **options)

    def safety_diagonals(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """diag(H_s^-1) of the safety inputs through the model as it is, for every tuned layer."""
        return self.inverse_diagonals(trainer, pl_module, self.safety_batches(trainer, pl_module), "safety")

    def task_diagonals(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> dict[str, Tensor]:
        """diag(H_t^-1) of the task's inputs through the model as it is, for every tuned layer."""
        return self.inverse_diagonals(trainer, pl_module, self.task_batches(trainer, task), "task")

    def visit_hessians(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Sequence[Any],
        what: str,
        visit: Callable[[Mapping[str, HessianAccumulator]], None],
    ) -> None:
        """Hand the Hessians of one block after the other to ``visit``."""

        def accumulate(columns: int) -> HessianAccumulator:
            return HessianAccumulator(columns, self.settings.damping)

        self._visit(trainer, pl_module, batches, what, visit, accumulate)

    def hessians(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Sequence[Any],
        what: str,
        damped: bool = True,
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The whole Hessians, fp32 on the CPU, one for each distinct input.

        Args:
            trainer, pl_module, batches, what: the fit, and which batches of it.
            damped: as the settings say; otherwise ``(2/n) X^T X`` alone.

        Returns:
            name of the first layer that has an input -> ``(in_features, in_features)``, and every layer's name -> the
            name of the first layer with the same input.
        """
        held: dict[str, Tensor] = {}
        first: dict[str, str] = {}

        def keep(accumulators: Mapping[str, HessianAccumulator]) -> None:
            for name, accumulator in _distinct(accumulators, first):
                hessian = accumulator.hessian() if damped else accumulator.gram() * (2.0 / accumulator.count)
                held[name] = hessian.float().cpu()

        self.visit_hessians(trainer, pl_module, batches, what, keep)
        return held, first

    def sketches(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any], what: str, rank: int
    ) -> tuple[dict[str, InputSketch], dict[str, str]]:
        """Sketches of ``H = (2/n) X^T X``, undamped, on the CPU, one for each distinct input; see :class:`InputSketch`.

        Args:
            trainer, pl_module, batches, what: as for :meth:`hessians`.
            rank: of the sketches; all columns where there are fewer.

        Returns:
            As :meth:`hessians`, with sketches instead of matrices.

        Raises:
            ValueError: no position of the batches counts.
        """
        held: dict[str, InputSketch] = {}
        first: dict[str, str] = {}

        def accumulate(columns: int) -> InputSketch:
            return InputSketch(columns, min(rank, columns))

        def keep(accumulators: Mapping[str, InputSketch]) -> None:
            for name, sketch in _distinct(accumulators, first):
                if sketch.count == 0:
                    raise ValueError(f"{name}: no calibration rows were seen: every position is padding.")
                held[name] = sketch.scaled(2.0 / sketch.count).to("cpu")

        self._visit(trainer, pl_module, batches, what, keep, accumulate)
        return held, first

    def _visit(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Sequence[Any],
        what: str,
        visit: Callable[[Mapping[str, Accumulator]], None],
        accumulate: Callable[[int], Accumulator],
    ) -> None:
        """Hand what was accumulated of one block after the other to ``visit``; see :func:`visit_inputs`."""
        with self._running(trainer, pl_module, what) as options:

            def visit_resharded(accumulators: Mapping[str, Accumulator]) -> None:
                reshard_(pl_module)
                visit(accumulators)

            visit_inputs(batches=batches, visit=visit_resharded, accumulate=accumulate, **options)

    @contextmanager
    def _running(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str) -> Iterator[dict[str, Any]]:
        """The arguments of a calibration pass that every pass has; the model runs quietly inside."""
        bar = tqdm(
            total=len(self.layers.block_modules),
            desc=f"Calibrating ({what})",
            leave=False,
            disable=not (trainer.is_global_zero and trainer.progress_bar_callback is not None),
        )
        with bar, naming_data(self.caller, self.named(what)), evaluation_mode(pl_module), leaving_no_trace(pl_module):
            yield {
                "forward": lambda batch: run_training_step(pl_module, batch),
                "blocks": self.layers.block_modules,
                "linears": {linear.name: linear.module for linear in self.layers},
                "valid_positions": self.settings.counted(what),
                "context": lambda: forward_context(trainer),
                "on_block": lambda done, total: bar.update(),
                "all_processes": trainer.world_size > 1,
                "may_stop": not is_sharded(pl_module),
            }


def _distinct(accumulators: Mapping[str, Accumulator], first: dict[str, str]) -> Iterator[tuple[str, Accumulator]]:
    """Each distinct accumulator with its first layer's name; ``first`` is called with that name for every layer."""
    names: dict[int, str] = {}
    for name, accumulator in accumulators.items():
        first[name] = names.setdefault(id(accumulator), name)
        if first[name] == name:
            yield name, accumulator
