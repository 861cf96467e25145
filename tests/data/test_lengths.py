"""Optimizer steps of epochs against a loop over batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from hpa_lightning.data.lengths import accumulated_batches, optimizer_steps


def counted(batches: int, window: int) -> int:
    steps = waiting = 0
    for _ in range(batches):
        waiting += 1
        if waiting == window:
            steps, waiting = steps + 1, 0
    return steps + (waiting > 0)


@pytest.mark.parametrize("batches", [1, 5, 6, 7])
@pytest.mark.parametrize("window", [1, 3, 10])
@pytest.mark.parametrize(("limit", "kept"), [(1.0, lambda n: n), (4, lambda n: min(n, 4)), (0.5, lambda n: n // 2)])
def test_steps_are_counted_as_a_loop_counts_them(batches: int, window: int, limit: Any, kept: Any) -> None:
    trainer = SimpleNamespace(callbacks=[], accumulate_grad_batches=window, limit_train_batches=limit)
    assert optimizer_steps(trainer, batches, range(3)) == 3 * counted(kept(batches), window)


def test_a_schedule_of_the_accumulation_counts_epoch_by_epoch() -> None:
    callbacks = [GradientAccumulationScheduler({0: 1, 2: 4})]
    trainer = SimpleNamespace(callbacks=callbacks, accumulate_grad_batches=1, limit_train_batches=1.0)
    assert [accumulated_batches(trainer, epoch) for epoch in range(4)] == [1, 1, 4, 4]
    assert optimizer_steps(trainer, 6, range(4)) == 6 + 6 + 2 + 2
    assert optimizer_steps(trainer, 6, [3]) == 2
