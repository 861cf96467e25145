"""The task that is being trained, and whether its training ends here."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L

from hpa_lightning.data.needs import task_stream
from hpa_lightning.data.protocols import Span


@dataclass(frozen=True)
class CurrentTask:
    """The task that is being trained.

    Args:
        index: 0-based position in the stream; without a stream, the number of fits that ended before.
        name: the task's name; ``"fit"`` without a stream.
        last_epoch: the epoch at whose end the task ends (inclusive); ``None`` without a stream.
    """

    index: int
    name: str
    last_epoch: int | None


def current_task(trainer: L.Trainer, finished: int) -> CurrentTask:
    """The task of the trainer's epoch; without a stream the fit, of which ``finished`` ended before."""
    stream = task_stream(trainer)
    return (
        CurrentTask(finished, "fit", None)
        if stream is None
        else _from_span(stream.task_at_epoch(trainer.current_epoch))
    )


def task_by_index(trainer: L.Trainer, index: int) -> CurrentTask:
    """The task at a position of the stream."""
    stream = task_stream(trainer)
    if stream is None:
        return CurrentTask(index, "fit", None)
    spans = (stream.task_at_epoch(epoch) for epoch in range(stream.total_epochs))
    return next(_from_span(span) for span in spans if span.index == index)


def task_count(trainer: L.Trainer) -> int:
    """How many tasks the trainer's stream has; 1 without a stream."""
    stream = task_stream(trainer)
    return 1 if stream is None else len(stream.tasks)


def is_last_batch(trainer: L.Trainer) -> bool:
    """Whether the batch that was just trained is the last of its task, as far as can be known now."""
    stream = task_stream(trainer)
    if stream is None:
        return _reached(trainer.global_step, trainer.max_steps) or (trainer.is_last_batch and is_last_epoch(trainer))
    return trainer.is_last_batch and trainer.current_epoch >= stream.task_at_epoch(trainer.current_epoch).last_epoch


def _from_span(span: Span) -> CurrentTask:
    return CurrentTask(span.index, span.task.name, span.last_epoch)


def is_last_epoch(trainer: L.Trainer) -> bool:
    """Whether the epoch is the last that the trainer allows."""
    return trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)


def stops(trainer: L.Trainer) -> bool:
    """At an epoch's end: whether the fit stops here though its epochs are not over; as Lightning's loops decide it."""
    if _reached(trainer.global_step, trainer.max_steps):
        return True
    enough = trainer.current_epoch + 1 >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.should_stop and enough


def _reached(steps: int, limit: int | None) -> bool:
    return limit not in (None, -1) and steps >= limit
