"""The base of both modes of HPA: which columns are retained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibrator import CalibratedCallback, CalibrationSettings
from hpa_lightning.callbacks.safety_data import settings_of
from hpa_lightning.callbacks.task import CurrentTask
from hpa_lightning.data.loading import named_generator
from hpa_lightning.results import retention_summary

RULES = ("partition", "safety", "balance", "ratio", "random")
SALIENCIES = ("divide", "multiply")
UNITS = ("columns", "rows")


@dataclass(frozen=True)
class RetentionSettings:
    """Which share of the columns is retained, and how safety and task are weighed.

    Args:
        p_min: percent of the columns retained in the last decoder block (paper: 5).
        p_max: percent towards the first block (paper: 15).
        alpha_min: smallest weight of the task focus on shared columns (paper: 0.4).
        alpha_max: largest weight (paper: 0.8).
        focus_ratio: columns counted as focused, as a multiple of the retained share (paper: 2).
        rule: how the budget is filled. ``"partition"``: the paper's two stages. The others are for ablations and
            controls: ``"safety"``, the columns of largest eps; ``"balance"``, those of largest phi = eps - alpha zeta
            out of all columns; ``"ratio"``, those of largest eps / zeta; ``"random"``, drawn by seed, layer and task.
        saliency: ``"divide"`` by diag(H^-1) (decision), or ``"multiply"`` with it; public summaries of the paper print
            the one and the other.
        reverse_alpha: lower the task's weight where safety signals dominate, in place of raising it (decision).
        seed: of ``rule="random"``; give each run its own.
        units: what is retained. ``"columns"``: input columns, each scored by the mean square of its changes and its own
            entry of diag(H^-1) (decision; the subscript ``jj``). ``"rows"``: output units, scored by the mean over the
            inputs of squared changes, each divided by that input's entry (the subscript ``ii``, as the paper's scores
            are printed, for weights stored as ``(in, out)``). Post-training HPA and ``hpa-lightning fuse`` alone.
    """

    p_min: float = 5.0
    p_max: float = 15.0
    alpha_min: float = 0.4
    alpha_max: float = 0.8
    focus_ratio: float = 2.0
    rule: str = "partition"
    saliency: str = "divide"
    reverse_alpha: bool = False
    seed: int = 0
    units: F.Units = "columns"

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_min <= self.p_max <= 100.0:
            raise ValueError(
                f"p_min, p_max are {self.p_min}, {self.p_max}; expected 0 <= p_min <= p_max <= 100 percent."
            )
        if self.focus_ratio < 1.0:
            raise ValueError(f"focus_ratio is {self.focus_ratio}; expected at least 1, or the budget cannot be filled.")
        for name, known in (("rule", RULES), ("saliency", SALIENCIES), ("units", UNITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {known}.")

    def divisor(self, inverse_diagonal: Tensor) -> Tensor:
        """What a column's energy is divided by: diag(H^-1), or its inverse with ``saliency="multiply"``."""
        return inverse_diagonal if self.saliency == "divide" else 1 / inverse_diagonal


class SelectingCallback(CalibratedCallback):
    """Selects the columns to retain from the focus on safety and on the task.

    Args:
        retention: shares and weights.
        safety_data, task_data, calibration, blocks, target_modules: see :class:`CalibratedCallback`.
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
        super().__init__(safety_data, task_data, calibration, blocks, target_modules)
        self.retention = settings_of(RetentionSettings, retention, "retention")
        self._audit: list[dict[str, Any]] = []

    def select(
        self,
        trainer: L.Trainer,
        task: CurrentTask,
        safety: Mapping[str, Tensor],
        task_diagonals: Mapping[str, Tensor],
        anchors: Mapping[str, Tensor],
        retention: RetentionSettings | None = None,
    ) -> dict[str, Tensor]:
        """Select the retained columns of every tuned layer, with the callback's own settings unless others are given.

        Returns:
            name -> boolean ``(in_features,)``, True keeps the old column, or ``(out_features,)`` with ``units="rows"``;
            equal on every rank.
        """
        settings = retention or self.retention
        retained: dict[str, Tensor] = {}
        audit: list[dict[str, Any]] = []
        for linear in self.linears:
            divisors = [settings.divisor(diagonals[linear.name]) for diagonals in (safety, task_diagonals)]
            anchor = anchors.get(linear.name)
            if settings.units == "rows":
                epsilon, zeta = (linear.row_focus(anchor, divisor) for divisor in divisors)
            else:
                energy = linear.column_energy(anchor)
                epsilon, zeta = (F.column_focus(energy, divisor) for divisor in divisors)
            mask, entry = select_columns(
                settings, epsilon, zeta, linear.layer, len(self._blocks), f"{task.index} {linear.name}"
            )
            retained[linear.name] = mask
            identity = {"step": task.index, "task": task.name, "layer": linear.layer, "module": linear.name}
            audit.append({**identity, **entry})
        if trainer.world_size > 1:
            on_cpu = trainer.strategy.broadcast({name: mask.cpu() for name, mask in retained.items()})
            retained = {name: on_cpu[name].to(mask.device) for name, mask in retained.items()}
        self._audit = audit
        columns = sum(entry["columns"] for entry in audit)
        kept = sum(entry["retained"] for entry in audit)
        rank_zero_info(
            f"Task {task.index} ({task.name}): {kept} of {columns} {settings.units} retained in {len(audit)} linear "
            "layers."
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


def select_columns(
    settings: RetentionSettings, safety_focus: Tensor, task_focus: Tensor, layer: int, layers: int, label: str = ""
) -> tuple[Tensor, dict[str, Any]]:
    """Select the columns, or rows, that one linear layer retains (steps 1 and 2 of HPA).

    Args:
        settings: shares and weights.
        safety_focus: eps, ``(in_features,)``; ``(out_features,)`` for rows.
        task_focus: zeta, likewise.
        layer: the layer's decoder block, counted from 1.
        layers: number of decoder blocks.
        label: what a random selection is drawn by.

    Returns:
        A boolean mask of the scores' shape, True keeps the old column or row; and how many there are of which kind
        (``columns``: of all, whatever the units), and alpha.
    """
    percent = F.retention_percent(layer, layers, settings.p_min, settings.p_max)
    focus_percent = min(100.0, settings.focus_ratio * percent)
    alpha = F.balance_coefficient(safety_focus, task_focus, settings.alpha_min, settings.alpha_max)
    if settings.reverse_alpha:
        alpha = settings.alpha_min + settings.alpha_max - alpha
    mask = _retained(settings, safety_focus, task_focus, percent, focus_percent, alpha, label)
    safety_focused, task_focused = F.partition_columns(safety_focus, task_focus, focus_percent)
    return mask, {
        "columns": len(mask),
        **({} if settings.units == "columns" else {"units": settings.units}),
        "retained": int(mask.sum()),
        "safety_focused": int(safety_focused.sum()),
        "task_focused": int(task_focused.sum()),
        "shared": int((safety_focused & task_focused).sum()),
        "alpha": float(alpha),
    }


def _retained(
    settings: RetentionSettings,
    epsilon: Tensor,
    zeta: Tensor,
    percent: float,
    focus_percent: float,
    alpha: float,
    label: str,
) -> Tensor:
    rule = settings.rule
    if rule == "partition":
        return F.retained_columns(epsilon, zeta, percent, focus_percent, alpha)
    eps, task = epsilon.double(), zeta.double()
    if rule == "safety":
        score = eps
    elif rule == "balance":
        score = eps - alpha * task
    elif rule == "ratio":
        score = torch.where(task > 0, eps / task, 0.0)
    else:
        drawn_by = named_generator(settings.seed, "random columns", label)
        score = torch.rand(len(eps), generator=drawn_by, dtype=torch.float64)
    return F.top_columns(score.to(epsilon.device), percent)
