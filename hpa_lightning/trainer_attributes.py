"""What Lightning's connectors set on a ``Trainer``, which its class does not declare: typed here, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import lightning as L


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The trainer's callbacks, in their order."""
    found: list[L.Callback] = getattr(trainer, "callbacks", [])
    return found


def datamodule_of(trainer: L.Trainer) -> L.LightningDataModule | None:
    """The datamodule of the running fit, test or prediction; ``None`` with plain loaders."""
    found: L.LightningDataModule | None = getattr(trainer, "datamodule", None)
    return found


def is_dev_run(trainer: L.Trainer) -> bool:
    """Whether the trainer only tries its code on a few batches (``fast_dev_run``)."""
    return bool(getattr(trainer, "fast_dev_run", False))


def results_directory(trainer: L.Trainer) -> Path:
    """The folder of a run's results: the logger's folder, or ``default_root_dir`` without a logger.

    Every process has to call this, and as often as the others: ``trainer.log_dir`` is broadcast from rank zero.
    """
    return Path(trainer.log_dir or trainer.default_root_dir)


def loaded_by_finder(trainer: L.Trainer) -> bool:
    """Whether the file that was loaded last is one that ``LearningRateFinder`` or ``BatchSizeFinder`` had written.

    They save the fit before their trials, load it afterwards and remove the file: that resumes nothing.
    """
    return os.path.basename(str(trainer.ckpt_path)).startswith((".lr_find_", ".scale_batch_size_"))


def resumed_from(trainer: L.Trainer) -> str | None:
    """The checkpoint that the fit goes on from; ``None`` if it begins, or where a finder hides the name."""
    return None if trainer.ckpt_path is None or loaded_by_finder(trainer) else str(trainer.ckpt_path)


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Hand figures to every logger of the trainer, as ``self.log`` does; ``trainer.logger`` is the first one alone."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)
