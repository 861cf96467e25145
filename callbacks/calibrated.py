"""The base of callbacks that calibrate: which data, which Hessians, which columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from tqdm.auto import tqdm

from hpa_lightning import functional as F
from hpa_lightning.calibration import inverse_hessian_diagonals
from hpa_lightning.callbacks.running import (
    batch_length,
    evaluation_mode,
    forward_context,
    muted_logging,
    plain_loader,
    to_device,
    valid_positions,
)
from hpa_lightning.callbacks.task import CurrentTask, TaskCallback, task_stream
from hpa_lightning.data.safety import SafetyCalibration, build_safety_calibration
from hpa_lightning.metrics.judges import StringRefusalJudge
from hpa_lightning.modules.linears import TunedLinear, check_linears, find_tuned_linears
from hpa_lightning.results import retention_summary


@dataclass(frozen=True)
class CalibrationSettings:
    """How much data calibrates, and how.

    Args:
        safety_samples: size of the safety calibration set (paper: 8).
        task_samples: size of the task calibration set (paper: 128).
        batch_size: samples in one forward pass.
        damping: share of the Hessian's mean diagonal added to its diagonal.
        judge: refusal rules by which the aligned model's own answers are checked.
    """

    safety_samples: int = 8
    task_samples: int = 128
    batch_size: int = 8
    damping: float = 0.01
    judge: str = "default"

    def __post_init__(self) -> None:
        for name in ("safety_samples", "task_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.damping > 0:
            raise ValueError(f"damping is {self.damping}; expected a positive share of the mean diagonal.")


@dataclass(frozen=True)
class RetentionSettings:
    """Which share of the columns is retained, and how safety and task are weighed.

    Args:
        p_min: percent of the columns retained in the last decoder block (paper: 5).
        p_max: percent towards the first block (paper: 15).
        alpha_min: smallest weight of the task focus on shared columns (paper: 0.4).
        alpha_max: largest weight (paper: 0.8).
        focus_ratio: columns counted as focused, as a multiple of the retained share (paper: 2).
    """

    p_min: float = 5.0
    p_max: float = 15.0
    alpha_min: float = 0.4
    alpha_max: float = 0.8
    focus_ratio: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_min <= self.p_max <= 100.0:
            raise ValueError(
                f"p_min, p_max are {self.p_min}, {self.p_max}; expected 0 <= p_min <= p_max <= 100 percent."
            )
        if self.focus_ratio < 1.0:
            raise ValueError(f"focus_ratio is {self.focus_ratio}; expected at least 1, or the budget cannot be filled.")


class CalibratedCallback(TaskCallback):
    """Calibrates on safety and task data and selects the columns to retain.

    Args:
        safety_data: batches that the model can be trained on, holding harmful inputs with the aligned model's
            refusals. ``None``: made once, before the first task, by the aligned model itself from the datamodule's
            ``harmful_calibration_records``; only answers that the judge calls refusals are used.
        task_data: batches of the task. ``None``: the datamodule's calibration split of the current task; without a
            task stream, the first samples of the training data.
        calibration: sizes and damping.
        retention: shares and weights.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
    """

    def __init__(
        self,
        safety_data: Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        retention: RetentionSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.safety_data = safety_data
        self.task_data = task_data
        self.calibration = calibration or CalibrationSettings()
        self.retention = retention or RetentionSettings()
        self.blocks = blocks
        self.target_modules = target_modules
        self.linears: list[TunedLinear] = []
        self._blocks: list[nn.Module] = []
        self._safety_calibration: SafetyCalibration | None = None
        self._audit: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.safety_data is None and not hasattr(trainer.datamodule or object(), "harmful_calibration_records"):
            raise MisconfigurationException(
                f"{type(self).__name__} needs safety calibration data: pass safety_data= (batches of harmful inputs "
                "answered with refusals), or fit with a datamodule that has harmful_calibration_records()."
            )

    def find_linears(self, pl_module: L.LightningModule) -> None:
        """Find the decoder blocks and the tuned linear layers of ``pl_module``."""
        self._blocks, self.linears = find_tuned_linears(pl_module, self.blocks, self.target_modules)
        check_linears(self.linears)

    # -- data --------------------------------------------------------------------------------------------------------

    def safety_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Any]:
        """The safety calibration batches on the device; built by the aligned model on the first call."""
        if self.safety_data is not None:
            return self._take(trainer, self.safety_data, self.calibration.safety_samples)
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
            )
        records, size = list(self._safety_calibration.records), self.calibration.batch_size
        chunks = [records[start : start + size] for start in range(0, len(records), size)]
        return [to_device(trainer, datamodule.collator.train(chunk)) for chunk in chunks]

    def task_batches(self, trainer: L.Trainer, task: CurrentTask) -> list[Any]:
        """The task's calibration batches on the device."""
        size = self.calibration.task_samples
        stream = task_stream(trainer)
        if self.task_data is not None:
            return self._take(trainer, self.task_data, size)
        if stream is not None:
            loader = stream.calibration_dataloader(task.index, size)
        else:
            loader = plain_loader(trainer.train_dataloader)
        return self._take(trainer, loader, size)

    def _take(self, trainer: L.Trainer, data: Iterable[Any], size: int) -> list[Any]:
        batches, samples = [], 0
        with isolate_rng():  # even a loader that does not shuffle draws a seed for its workers
            for batch in data:
                batches.append(to_device(trainer, batch))
                samples += batch_length(batch)
                if samples >= size:
                    break
        if not batches:
            raise ValueError(f"{type(self).__name__}: the calibration data are empty; expected at least one batch.")
        return batches

    # -- Hessians and selection --------------------------------------------------------------------------------------

    def inverse_diagonals(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any], what: str
    ) -> dict[str, Tensor]:
        """diag(H^-1) of every tuned layer's inputs over ``batches``, with a progress bar over the blocks."""
        bar = tqdm(
            total=len(self._blocks),
            desc=f"Calibrating ({what})",
            leave=False,
            disable=not (trainer.is_global_zero and trainer.progress_bar_callback is not None),
        )
        with bar, evaluation_mode(pl_module), muted_logging(pl_module):
            return inverse_hessian_diagonals(
                lambda batch: pl_module.training_step(batch, 0),
                batches,
                self._blocks,
                {linear.name: linear.module for linear in self.linears},
                damping=self.calibration.damping,
                valid_positions=valid_positions,
                context=lambda: forward_context(trainer),
                on_block=lambda done, total: bar.update(),
            )

    def select(
        self,
        trainer: L.Trainer,
        task: CurrentTask,
        safety: Mapping[str, Tensor],
        task_diagonals: Mapping[str, Tensor],
        anchors: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Select the retained columns of every tuned layer and record the audit.

        Returns:
            name -> boolean ``(in_features,)``, True keeps the old column; equal on every rank.
        """
        settings = self.retention
        retained: dict[str, Tensor] = {}
        audit: list[dict[str, Any]] = []
        for linear in self.linears:
            anchor = anchors.get(linear.name)
            epsilon = linear.column_focus(anchor, safety[linear.name])
            zeta = linear.column_focus(anchor, task_diagonals[linear.name])
            percent = F.retention_percent(linear.layer, len(self._blocks), settings.p_min, settings.p_max)
            focus_percent = min(100.0, settings.focus_ratio * percent)
            alpha = F.balance_coefficient(epsilon, zeta, settings.alpha_min, settings.alpha_max)
            mask = F.retained_columns(epsilon, zeta, percent, focus_percent, alpha)
            safety_focused, task_focused = F.partition_columns(epsilon, zeta, focus_percent)
            retained[linear.name] = mask
            audit.append(
                {
                    "step": task.index,
                    "task": task.name,
                    "layer": linear.layer,
                    "module": linear.name,
                    "columns": linear.in_features,
                    "retained": int(mask.sum()),
                    "safety_focused": int(safety_focused.sum()),
                    "task_focused": int(task_focused.sum()),
                    "shared": int((safety_focused & task_focused).sum()),
                    "alpha": float(alpha),
                }
            )
        if trainer.world_size > 1:
            on_cpu = trainer.strategy.broadcast({name: mask.cpu() for name, mask in retained.items()})
            retained = {name: on_cpu[name].to(mask.device) for name, mask in retained.items()}
        self._audit = audit
        columns = sum(entry["columns"] for entry in audit)
        kept = sum(entry["retained"] for entry in audit)
        rank_zero_info(
            f"Task {task.index} ({task.name}): {kept} of {columns} columns retained in {len(audit)} linear layers."
        )
        return retained

    def record_audit(self, trainer: L.Trainer, task: CurrentTask, projection_scale: Mapping[str, float]) -> None:
        """Write the audit of the last selection to the result file and its means to the logger."""
        audit = [{**entry, "projection_scale": projection_scale.get(entry["module"])} for entry in self._audit]
        for entry in audit:
            self.record(trainer, "retention", **entry)
        if trainer.logger is not None and audit:
            means = retention_summary(audit).items()
            trainer.logger.log_metrics(
                {f"retention/{name}": value for name, value in means if math.isfinite(value)}, step=trainer.global_step
            )

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._safety_calibration is not None:
            state["safety_calibration"] = self._safety_calibration.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "safety_calibration" in state_dict:
            self._safety_calibration = SafetyCalibration.from_state_dict(state_dict["safety_calibration"])
