"""What Lightning's connectors set on a ``Trainer``, which its class does not declare: typed here, once."""

from __future__ import annotations

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
