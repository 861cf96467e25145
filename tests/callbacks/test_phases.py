"""The order of work at a task's boundary: named phases, and whole numbers between them."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS

from hpa_lightning import callbacks
from hpa_lightning.callbacks import baselines
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback

CALLED: list[str] = []


class Fuses(TaskCallback):
    end_order = EndPhase.FUSING

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        CALLED.append(f"start {type(self).__name__}")

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        CALLED.append(f"end {type(self).__name__}")


class Plugin(Fuses):
    start_order = 44
    end_order = 9


class Judges(Fuses):
    start_order = StartPhase.GUARDING
    end_order = EndPhase.JUDGING


def test_every_callback_of_the_package_names_its_phases() -> None:
    for module in (callbacks, baselines):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, TaskCallback):
                assert isinstance(kind.start_order, StartPhase) and isinstance(kind.end_order, EndPhase), name


def test_a_number_is_a_place_between_phases(tmp_path: Path) -> None:
    CALLED.clear()
    trainer = quiet_trainer(tmp_path, [Judges(), Fuses(), Plugin()], max_epochs=1)
    trainer.fit(foreign_module(OPTIMIZERS["adamw_decay"], lora=True), token_loader(1, 8))
    assert CALLED == ["start Judges", "start Plugin", "start Fuses", "end Plugin", "end Fuses", "end Judges"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("FUSING", r"Own\.end_order is 'FUSING'; expected EndPhase\.REMEMBERING, RESTORING, FUSING,"),
        (10.5, r"Own\.end_order is 10\.5; expected EndPhase"),
        (True, r"Own\.end_order is True"),
        (None, r"Own\.end_order is None"),
        (StartPhase.FREEZING, r"Own\.end_order is StartPhase\.FREEZING; expected EndPhase"),
    ],
)
def test_anything_else_is_refused_where_the_class_is_made(value: object, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        type("Own", (TaskCallback,), {"end_order": value})
