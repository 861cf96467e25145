"""What both modes of HPA report of the columns that they retain."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.functional import RetentionSettings
from hpa_lightning.modules.tuned_linear import TunedLinear
from hpa_lightning.results.events import RetentionEvent
from hpa_lightning.results.run_results import nothing_retained, retention_summary
from hpa_lightning.trainer_attributes import log_metrics


def random_columns(settings: RetentionSettings, task: CurrentTask, linear: TunedLinear) -> torch.Generator:
    """What ``rule="random"`` draws a layer's columns by: seed, task and layer."""
    return named_generator(settings.seed, "random columns", f"{task.index} {linear.name}")


def audit_of(task: CurrentTask, linear: TunedLinear, audit: dict[str, Any]) -> dict[str, Any]:
    """The audit of one layer (:func:`hpa_lightning.functional.focus_partition`) as the result file has it."""
    identity = {"step": task.index, "task": task.name, "layer": linear.layer, "module": linear.name}
    return {**identity, **audit, "projection_scale": audit.get("projection_scale")}


def record_audit(callback: TaskCallback, trainer: L.Trainer, task: CurrentTask, audit: list[dict[str, Any]]) -> None:
    """Write the audit of all layers to the result file, its means to the loggers and its sum to the console."""
    kept, columns = (sum(entry[key] for entry in audit) for key in ("retained", "columns"))
    units = audit[0].get("units", "columns")
    rank_zero_info(
        f"Task {task.index} ({task.name}): {kept} of {columns} {units} retained in {len(audit)} linear layers."
    )
    if reported := nothing_retained(audit):
        rank_zero_warn(f"Task {task.index} ({task.name}), {type(callback).__name__}: {reported}")
    events = [RetentionEvent(**entry) for entry in audit]
    for event in events:
        callback.record(trainer, event)
    means = retention_summary(events).items()
    finite = {f"retention/{name}": value for name, value in means if math.isfinite(value)}
    log_metrics(trainer, finite, trainer.global_step)
