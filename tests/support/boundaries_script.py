"""Two processes: a task that ends in ``on_fit_end``, and a loss that is not finite on one of them.

boundaries_script.py FOLDER STRATEGY     STRATEGY: ddp, fsdp
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import Tokens, foreign_module, quiet_trainer
from support.method_fits import calibration_data, dense
from support.method_registry import METHODS
from support.processes_script import EverySecond, strategy
from support.programs import report_fatal_signals
from torch.utils.data import DataLoader

from hpa_lightning.callbacks.divergence import TrainingDivergedError


class BadOnOne(L.Callback):
    """The first process's loss is not finite in the second step."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 0:
            loss.data.fill_(float("nan"))


def fit(folder: Path, name: str, every: list[L.Callback], resume: str | None = None) -> Any:
    module = foreign_module(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), name == "ddp")
    for block in module.model.layers:
        block.dropout.p = 0.0
    callbacks = [*every, *METHODS["post_training"](calibration_data())]
    options = {"max_steps": 3, "max_epochs": -1, "strategy": strategy(name), "devices": 2}
    trainer = quiet_trainer(folder, callbacks, enable_checkpointing=True, use_distributed_sampler=False, **options)
    trainer.fit(module, DataLoader(Tokens(1, 24), batch_size=4, sampler=EverySecond(24, 2)), ckpt_path=resume)
    return dense(module), trainer


def main(folder: Path, name: str) -> None:
    save = ModelCheckpoint(folder / "whole", filename="{step}", every_n_train_steps=3)
    whole, _ = fit(folder / "whole", name, [save])
    again = ModelCheckpoint(folder / "resumed", save_last=True)
    resumed, trainer = fit(folder / "resumed", name, [again], str(folder / "whole" / "step=3.ckpt"))
    assert all(torch.equal(weight, resumed[key]) for key, weight in whole.items())
    assert (folder / "resumed" / "finished.ckpt").exists(), "the model after the end is saved"
    try:
        fit(folder / "diverged", name, [BadOnOne(), ModelCheckpoint(folder / "diverged")])
    except TrainingDivergedError as error:
        (folder / f"rank{trainer.global_rank}.txt").write_text(str(error))


if __name__ == "__main__":
    report_fatal_signals()
    main(Path(sys.argv[1]), sys.argv[2])
