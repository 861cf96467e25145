"""The base of callbacks that calibrate: which data, which Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

from hpa_lightning.calibration import Uncounted, inverse_hessian_diagonals, visit_hessians
from hpa_lightning.callbacks.running import (
    batch_length,
    evaluation_mode,
    forward_context,
    muted_logging,
    plain_loader,
    to_device,
    valid_positions,
)
from hpa_lightning.callbacks.task import CurrentTask, task_stream
from hpa_lightning.callbacks.tuning import LinearsCallback
from hpa_lightning.data.safety import SafetyCalibration, build_safety_calibration
from hpa_lightning.functional import HessianAccumulator
from hpa_lightning.metrics.judges import StringRefusalJudge
from hpa_lightning.modules.sharding import is_sharded, reshard_


@dataclass(frozen=True)
class CalibrationSettings:
    """How much data calibrates, and how.

    Args:
        safety_samples: size of the safety calibration set (paper: 8).
        task_samples: size of the task calibration set (paper: 128).
        batch_size: samples in one forward pass.
        damping: share of the Hessian's mean diagonal added to its diagonal.
        judge: refusal rules by which the aligned model's own answers are checked.
        normalized: divide the Hessian by the number of tokens (decision); without it a larger calibration set weighs
            more. Only the balance of HPA's safety and task focus depends on it.
    """

    safety_samples: int = 8
    task_samples: int = 128
    batch_size: int = 8
    damping: float = 0.01
    judge: str = "default"
    normalized: bool = True

    def __post_init__(self) -> None:
        for name in ("safety_samples", "task_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.damping > 0:
            raise ValueError(f"damping is {self.damping}; expected a positive share of the mean diagonal.")


class CalibratedCallback(LinearsCallback):
    """Runs the model over safety and task data and gathers the Hessians of its linear layers.

    Args:
        safety_data: batches that the model can be trained on, holding harmful inputs with the aligned model's
            refusals. ``None``: made once, before the first task, by the aligned model itself from the datamodule's
            ``harmful_calibration_records``; only answers that the judge calls refusals are used.
        task_data: batches of the task. ``None``: the datamodule's calibration split of the current task; without a
            task stream, the first samples of the training data.
        calibration: sizes and damping.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
    """

    needs_safety_data: ClassVar[bool] = True

    def __init__(
        self,
        safety_data: Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(blocks, target_modules)
        self.safety_data = safety_data
        self.task_data = task_data
        self.calibration = calibration or CalibrationSettings()
        self._safety_calibration: SafetyCalibration | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or not self.needs_safety_data:
            return
        if self.safety_data is None and not hasattr(trainer.datamodule or object(), "harmful_calibration_records"):
            raise MisconfigurationException(
                f"{type(self).__name__} needs safety calibration data: pass safety_data= (batches of harmful inputs "
                "answered with refusals), or fit with a datamodule that has harmful_calibration_records()."
            )

    # -- data --------------------------------------------------------------------------------------------------------

    def safety_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Any]:
        """This process's share of the safety calibration batches; built by the aligned model on the first call."""
        if self.safety_data is not None:
            return self._share(trainer, self._take(trainer, self.safety_data, self.calibration.safety_samples))
        datamodule: Any = trainer.datamodule
        if self._safety_calibration is None:
            judge = StringRefusalJudge(self.calibration.judge)
            with evaluation_mode(pl_module), forward_context(trainer):
                self._safety_calibration = build_safety_calibration(
                    lambda batch: pl_module.generate(to_device(trainer, batch)),  # type: ignore[operator]
                    datamodule.collator,
                    datamodule.harmful_calibration_records(),
                    judge,
                    size=self.calibration.safety_samples,
                    batch_size=self.calibration.batch_size,
                )
            self.record(
                trainer,
                "safety_calibration",
                asked=self._safety_calibration.asked,
                refused=self._safety_calibration.refused,
                used=len(self._safety_calibration.records),
                judge=self.calibration.judge,
                records=[record.where for record in self._safety_calibration.records],
            )
        records, size = list(self._safety_calibration.records), self.calibration.batch_size
        chunks = [records[start : start + size] for start in range(0, len(records), size)]
        return self._share(trainer, [datamodule.collator.train(chunk) for chunk in chunks])

    def task_batches(self, trainer: L.Trainer, task: CurrentTask) -> list[Any]:
        """This process's share of the task's calibration batches."""
        size = self.calibration.task_samples
        stream = task_stream(trainer)
        if self.task_data is None and stream is None:  # Lightning has given every process a loader of other samples
            loader = plain_loader(trainer.train_dataloader)
            return self._share(trainer, self._take(trainer, loader, -(-size // trainer.world_size)), alike=False)
        data = self.task_data if self.task_data is not None else stream.calibration_dataloader(task.index, size)
        return self._share(trainer, self._take(trainer, data, size))

    def _take(self, trainer: L.Trainer, data: Iterable[Any], size: int) -> list[Any]:
        batches, samples = [], 0
        with isolate_rng():  # even a loader that does not shuffle draws a seed for its workers
            for batch in data:
                batches.append(batch)
                samples += batch_length(batch)
                if samples >= size:
                    break
        if not batches:
            raise ValueError(f"{type(self).__name__}: the calibration data are empty; expected at least one batch.")
        return batches

    def _share(self, trainer: L.Trainer, batches: list[Any], alike: bool = True) -> list[Any]:
        """This process's batches, on its device and filled up to equally many on each.

        Args:
            trainer: whose processes share them.
            batches: at least one.
            alike: every process holds the same batches; otherwise each holds its own.
        """
        size = trainer.world_size
        share = batches[trainer.global_rank :: size] if alike else batches
        counts = [len(batches[rank::size]) for rank in range(size)]
        if not alike and size > 1:
            torch.distributed.all_gather_object(counts, len(share))
        on_device = [to_device(trainer, batch) for batch in share]
        fill = max(counts) - len(share)
        return on_device + fill * [Uncounted(on_device[0] if on_device else to_device(trainer, batches[0]))]

    # -- Hessians ----------------------------------------------------------------------------------------------------

    def inverse_diagonals(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any], what: str
    ) -> dict[str, Tensor]:
        """diag(H^-1) of every tuned layer's inputs over ``batches``, with a progress bar over the blocks."""
        with self._running(trainer, pl_module, what) as options:
            return inverse_hessian_diagonals(batches=batches, normalized=self.calibration.normalized, **options)

    def visit_hessians(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Sequence[Any],
        what: str,
        visit: Callable[[Mapping[str, HessianAccumulator]], None],
    ) -> None:
        """Hand the Hessians of one block after the other to ``visit``; see :func:`visit_hessians`."""
        with self._running(trainer, pl_module, what) as options:

            def visit_resharded(accumulators: Mapping[str, HessianAccumulator]) -> None:
                reshard_(pl_module)
                visit(accumulators)

            visit_hessians(batches=batches, visit=visit_resharded, **options)

    def hessians(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any], what: str
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The whole damped Hessians, fp32 on the CPU, one for each distinct input.

        Returns:
            name of the first layer that has an input -> ``(in_features, in_features)``, and every layer's name -> the
            name of the first layer with the same input.
        """
        held: dict[str, Tensor] = {}
        first: dict[str, str] = {}

        def keep(accumulators: Mapping[str, HessianAccumulator]) -> None:
            names: dict[int, str] = {}
            for name, accumulator in accumulators.items():
                first[name] = names.setdefault(id(accumulator), name)
                if first[name] == name:
                    held[name] = accumulator.hessian().float().cpu()

        self.visit_hessians(trainer, pl_module, batches, what, keep)
        return held, first

    @contextmanager
    def _running(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str) -> Iterator[dict[str, Any]]:
        """The arguments of a calibration pass that every pass has; the model runs quietly inside."""
        bar = tqdm(
            total=len(self._blocks),
            desc=f"Calibrating ({what})",
            leave=False,
            disable=not (trainer.is_global_zero and trainer.progress_bar_callback is not None),
        )
        with bar, evaluation_mode(pl_module), muted_logging(pl_module):
            yield {
                "forward": lambda batch: pl_module.training_step(batch, 0),
                "blocks": self._blocks,
                "linears": {linear.name: linear.module for linear in self.linears},
                "damping": self.calibration.damping,
                "valid_positions": valid_positions,
                "context": lambda: forward_context(trainer),
                "on_block": lambda done, total: bar.update(),
                "all_processes": trainer.world_size > 1,
                "may_stop": not is_sharded(pl_module),
            }

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._safety_calibration is not None:
            state["safety_calibration"] = self._safety_calibration.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "safety_calibration" in state_dict:
            self._safety_calibration = SafetyCalibration.from_state_dict(state_dict["safety_calibration"])
