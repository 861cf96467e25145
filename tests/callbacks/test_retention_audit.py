"""What is told of retained columns: the draw of random ones, and the lines of the result file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpa_lightning.callbacks.retention_audit import audit_of, random_columns, record_audit
from hpa_lightning.functional import RetentionSettings
from hpa_lightning.results.events import RetentionEvent


def layer(name: str, number: int = 1) -> Any:
    return SimpleNamespace(name=name, layer=number)


def task(index: int) -> Any:
    return SimpleNamespace(index=index, name="a")


AUDIT = {"columns": 10, "retained": 4, "safety_focused": 3, "task_focused": 5, "shared": 2, "alpha": 0.6}


def test_random_columns_depend_on_seed_task_and_layer_alone() -> None:
    def drawn(seed: int = 0, index: int = 0, name: str = "layers.0.q_proj") -> float:
        torch.rand(3)  # the global state does not count
        generator = random_columns(RetentionSettings(seed=seed), task(index), layer(name))
        return float(torch.rand(1, generator=generator))

    assert drawn() == drawn()
    assert len({drawn(), drawn(seed=1), drawn(index=1), drawn(name="layers.1.q_proj")}) == 4


def test_every_layer_is_a_line_and_the_logger_gets_means() -> None:
    written: list[RetentionEvent] = []
    logged: dict[str, float] = {}
    callback: Any = SimpleNamespace(record=lambda trainer, event: written.append(event))
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    trainer: Any = SimpleNamespace(loggers=[logger], global_step=7)
    audit = [
        audit_of(task(1), layer("layers.0.up_proj"), {**AUDIT, "projection_scale": 0.1}),
        audit_of(task(1), layer("layers.1.up_proj", 2), {**AUDIT, "retained": 0}),
    ]
    record_audit(callback, trainer, task(1), audit)
    assert [(event.step, event.layer, event.module, event.retained) for event in written] == [
        (1, 1, "layers.0.up_proj", 4),
        (1, 2, "layers.1.up_proj", 0),
    ]
    assert written[0].projection_scale == 0.1 and written[1].projection_scale is None
    assert logged and all(name.startswith("retention/") for name in logged)


def test_a_fusion_that_retains_nothing_is_warned_of() -> None:
    callback: Any = SimpleNamespace(record=lambda trainer, event: None)
    trainer: Any = SimpleNamespace(loggers=[], global_step=0)
    audit = [audit_of(task(0), layer("layers.0.up_proj"), {**AUDIT, "retained": 0})]
    with pytest.warns(UserWarning, match=r"Task 0 \(a\), SimpleNamespace: no column is retained"):
        record_audit(callback, trainer, task(0), audit)
