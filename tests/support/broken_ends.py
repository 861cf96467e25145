"""Fits whose task's end breaks or comes early, and what is left of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from support.method_fits import calibration_data
from support.method_registry import METHODS
from support.resumed_fits import ResumableLoader, build, trainer

from hpa_lightning.callbacks import TaskCallback
from hpa_lightning.callbacks.current_task import CurrentTask

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class RunsOutOfMemory(TaskCallback):
    """Stands for an error in another task callback, before or after those of the method."""

    shapes_training = False

    def __init__(self, end_order: int, task: int = 0) -> None:
        super().__init__()
        self.end_order = end_order  # type: ignore[misc]
        self.task = task

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index == self.task:
            raise OUT_OF_MEMORY


def stop_at_once() -> EarlyStopping:
    return EarlyStopping("loss", stopping_threshold=1e9, mode="min", check_on_train_epoch_end=True)


@cache
def whole(name: str, lora: bool, folder: Path, epochs: int = 3) -> dict[str, torch.Tensor]:
    tuned = build(lora)
    uncut = trainer(folder, METHODS[name](calibration_data()), enable_checkpointing=False, max_epochs=epochs)
    uncut.fit(tuned, ResumableLoader())
    return tuned.state_dict()
