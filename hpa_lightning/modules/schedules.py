"""Learning-rate schedules as long as the task that is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, PolynomialLR, SequentialLR
from transformers import get_scheduler

_STEPS = "num_training_steps"
_NAMES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "warmup_stable_decay",
    "inverse_sqrt",
    "constant",
    "constant_with_warmup",
)


class UnknownLengthError(ValueError):
    """How long a task or a fit will be is not known."""


@dataclass
class TaskSchedule:
    """A schedule of transformers over the optimizer steps of each task: ``lr_scheduler: {name: cosine}``.

    The rate warms up from 0 and, unless the schedule is a constant one, has come down when the task ends, whatever the
    tasks' lengths.

    Args:
        name: ``"linear"``, ``"cosine"``, ``"cosine_with_restarts"``, ``"cosine_with_min_lr"``, ``"polynomial"``,
            ``"warmup_stable_decay"``, ``"inverse_sqrt"``, ``"constant"``, ``"constant_with_warmup"``.
        warmup_ratio: share of the task's steps that the rate rises, rounded up, but never all; LLaVA's is 0.03.
        warmup_steps: their number in place of the share.
        arguments: of that schedule of transformers, such as ``{"num_cycles": 0.5}`` or ``{"min_lr_rate": 0.1}``.

    Raises:
        ValueError: an unknown name, or both or impossible warm-ups.
    """

    name: str = "cosine"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise ValueError(f"lr_scheduler.name is {self.name!r}; expected one of {list(_NAMES)}.")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"lr_scheduler.warmup_ratio is {self.warmup_ratio}; expected a share in [0, 1).")
        if self.warmup_steps is not None and (self.warmup_steps < 0 or self.warmup_ratio > 0):
            raise ValueError(
                f"lr_scheduler has warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio}; expected one "
                "of them, and at least 0."
            )

    def __call__(self, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
        warm_up = self.warmup_steps
        if warm_up is None:
            warm_up = min(math.ceil(self.warmup_ratio * num_training_steps), num_training_steps - 1)
        elif warm_up >= num_training_steps:
            raise ValueError(
                f"lr_scheduler warms up for {warm_up} steps, but the task has {num_training_steps}; lower warmup_steps "
                "or give warmup_ratio."
            )
        return get_scheduler(self.name, optimizer, warm_up, num_training_steps, self.arguments)


def build_scheduler(make: Callable[..., Any], optimizer: Optimizer, trainer: Any, interval: str) -> Any:
    """Make a scheduler; if the callable has a parameter ``num_training_steps``, it gets the task's length.

    Args:
        make: optimizer -> scheduler, or (optimizer, num_training_steps) -> scheduler, as those of transformers.
        optimizer: to be scheduled.
        trainer: of the fit; ``None`` outside one.
        interval: the unit of the length, ``"step"`` (optimizer steps) or ``"epoch"``.

    Raises:
        ValueError: the length is wanted and not known.
    """
    if _wants_steps(make):
        if trainer is None:
            raise ValueError("the schedule asks for the task's steps, which are known inside a fit; attach a trainer.")
        return make(optimizer, **{_STEPS: task_length(trainer, interval)[1]})
    scheduler = make(optimizer)
    counted = _own_length(scheduler)
    if trainer is not None and counted is not None:
        try:
            name, length = task_length(trainer, interval)
        except (UnknownLengthError, MisconfigurationException):  # Lightning's, of accumulation that changes
            return scheduler  # its length was not asked for, and there is nothing to compare it with
        if counted != length:
            rank_zero_warn(
                f"lr_scheduler: {type(scheduler).__name__} is made for {counted} {interval}s, and {name} has {length}. "
                "Its rate does not end where the task ends; lr_scheduler={'name': 'cosine', 'warmup_ratio': 0.03} "
                "(TaskSchedule) follows the tasks, as does any function with a parameter num_training_steps."
            )
    return scheduler


def task_length(trainer: Any, interval: str = "step") -> tuple[str, int]:
    """Return the name and the length of what one optimizer is made for: a task of a stream, or the whole fit.

    A stream whose optimizer nobody makes anew at the tasks' boundaries (no ``SequentialTuning``) is one piece.

    Args:
        trainer: of the running fit, whose current epoch tells the task.
        interval: ``"step"``: optimizer steps, with accumulation, ranks, ``limit_train_batches`` and ``max_steps``;
            ``"epoch"``: the trainer's epochs.

    Raises:
        UnknownLengthError: the length is not known: endless data or epochs, or a stream that does not tell it.
    """
    stream: Any = getattr(trainer, "datamodule", None)
    if not hasattr(stream, "task_at_epoch"):
        length = trainer.max_epochs if interval == "epoch" else trainer.estimated_stepping_batches
        if length in (None, -1, math.inf):
            raise UnknownLengthError(
                f"the schedule asks for the fit's {interval}s, which are not known; give Trainer(max_epochs=...) and "
                "data with a length, or Trainer(max_steps=...)."
            )
        return "the fit", int(length)
    if interval == "step" and not hasattr(stream, "task_steps"):
        raise UnknownLengthError(
            f"the schedule asks for the task's optimizer steps; {type(stream).__name__} has to tell them by "
            "task_steps(index) -> int, as CVITDataModule does."
        )
    spans = {span.index: span for span in map(stream.task_at_epoch, range(stream.total_epochs))}
    name = "the stream"
    if any(getattr(callback, "handles_task_boundaries", False) for callback in trainer.callbacks):
        current = stream.task_at_epoch(min(trainer.current_epoch, stream.total_epochs - 1))
        spans, name = {current.index: current}, f"task {current.index} ({current.task.name!r})"
    if interval == "epoch":
        return name, sum(span.last_epoch - span.first_epoch + 1 for span in spans.values())
    steps = sum(stream.task_steps(index) for index in spans)
    return name, steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def _wants_steps(make: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(make).parameters.get(_STEPS)
    except (TypeError, ValueError):  # builtins without a signature
        return False
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _own_length(scheduler: Any) -> int | None:
    """Of schedulers that come down over a given number of steps, that number."""
    if isinstance(scheduler, CosineAnnealingLR):
        return scheduler.T_max
    if isinstance(scheduler, PolynomialLR):
        return scheduler.total_iters
    if isinstance(scheduler, SequentialLR):
        last = _own_length(scheduler._schedulers[-1])
        return None if last is None else scheduler._milestones[-1] + last
    total = getattr(scheduler, "total_steps", None)  # OneCycleLR
    return total if isinstance(total, int) else None
