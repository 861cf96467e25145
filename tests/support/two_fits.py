"""Two fits of the foreign module, one after another, with a method that merges; and what training made of it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from support.foreign_module import quiet_trainer, token_loader
from support.method_fits import dense

from hpa_lightning.callbacks import CurrentTask, TaskCallback


class Trained(TaskCallback):
    """The weights at each task's end, before anything is merged."""

    end_order = 0

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.weights.append({name: weight.clone() for name, weight in dense(pl_module).items()})


def two_fits(module: L.LightningModule, callbacks: list[L.Callback], folder: Path) -> list[dict[str, torch.Tensor]]:
    """Two tasks; returns the weights that were kept before, after the first and after the second."""
    trainer = quiet_trainer(folder, callbacks, max_epochs=1)
    kept = [{name: weight.clone() for name, weight in dense(module).items()}]
    for number in range(2):
        trainer.fit_loop.max_epochs = number + 1
        trainer.fit(module, token_loader(number, 20))
        kept.append({name: weight.clone() for name, weight in dense(module).items()})
    return kept
