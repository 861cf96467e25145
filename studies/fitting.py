"""Fits of the embedded model with callbacks that look on: what the scripts here share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.modules import NanoModule


def fit_nano(seed: int, callbacks: Sequence[L.Callback], folder: Path, **data: Any) -> None:
    """Tune the embedded model on its tasks, one after another, with ``callbacks`` beside SequentialTuning.

    Args:
        seed: of the data and the training.
        callbacks: what looks on or takes part.
        folder: for the logs.
        data: settings of the NanoDataModule, e.g. ``task_order``; its six tasks when nothing is set.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    fit_stream(NanoModule(), NanoDataModule(seed=seed, **data), seed, callbacks, folder)


def fit_stream(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    seed: int,
    callbacks: Sequence[L.Callback],
    folder: Path,
) -> None:
    """Tune ``module`` on a stream of tasks on the CPU, with ``callbacks`` beside SequentialTuning."""
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[SequentialTuning(seed=seed), *callbacks],
        max_epochs=-1,  # the stream sets it
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, datamodule=datamodule)
