"""How many optimizer steps epochs of a given number of batches take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler


def accumulated_batches(trainer: Any, epoch: int) -> int:
    """Return the batches of one optimizer step in an epoch; ``GradientAccumulationScheduler`` may change them."""
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    found: int = trainer.accumulate_grad_batches
    return found


def optimizer_steps(trainer: Any, batches: int, epochs: Iterable[int]) -> int:
    """Return the optimizer steps that epochs of ``batches`` batches on each device take.

    Args:
        trainer: its ``limit_train_batches`` and ``accumulate_grad_batches`` count; the last, shorter window of an epoch
            is a step.
        batches: of one epoch on one device, before ``limit_train_batches``.
        epochs: the trainer's numbers of the epochs.
    """
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return sum(math.ceil(batches / accumulated_batches(trainer, epoch)) for epoch in epochs)
