"""Learning-rate schedules as long as the task that is trained."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from transformers import get_scheduler

from hpa_lightning.data.needs import counted_stream, task_stream
from hpa_lightning.trainer_attributes import callbacks_of

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
        warmup_steps: their number instead of the share.
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

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TaskSchedule:
        """Return the schedule of a dict of its arguments, as YAML and checkpoints have it.

        Raises:
            ValueError: an unknown argument, or a value that the schedule refuses.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"lr_scheduler has {unknown}; expected a dict of {known}, or a function of the optimizer.")
        return cls(**settings)

    def __call__(self, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
        warm_up = self.warmup_steps
        if warm_up is None:
            warm_up = min(math.ceil(self.warmup_ratio * num_training_steps), num_training_steps - 1)
        elif warm_up >= num_training_steps:
            raise ValueError(
                f"lr_scheduler warms up for {warm_up} steps, but the task has {num_training_steps}; lower warmup_steps "
                "or give warmup_ratio."
            )
        found: LRScheduler = get_scheduler(self.name, optimizer, warm_up, num_training_steps, self.arguments)
        return found


def build_scheduler(make: Callable[..., Any], optimizer: Optimizer, trainer: Any, interval: str) -> Any:
    """Make a scheduler; if the callable has a parameter ``num_training_steps``, it gets the task's length.

    Args:
        make: optimizer -> scheduler, or (optimizer, num_training_steps) -> scheduler, as those of transformers.
        optimizer: to be scheduled.
        trainer: of the fit; ``None`` outside one.
        interval: the unit of the length, ``"step"`` (optimizer steps) or ``"epoch"``.

    Raises:
        ValueError: the length is wanted and not known, or the rate falls below 0 within it.
    """
    if _wants_steps(make):
        if trainer is None:
            raise ValueError("the schedule asks for the task's steps, which are known inside a fit; attach a trainer.")
        return make(optimizer, **{_STEPS: task_length(trainer, interval)[1]})
    scheduler = make(optimizer)
    if trainer is not None:
        try:
            name, length = task_length(trainer, interval)
        except (UnknownLengthError, MisconfigurationException):  # Lightning's, of accumulation that changes
            return scheduler  # its length was not asked for, and there is nothing to compare it with
        _check_fits(scheduler, optimizer, name, length, interval)
    return scheduler


def _check_fits(scheduler: Any, optimizer: Optimizer, name: str, length: int, interval: str) -> None:
    """Warn of a schedule that is made for another length, or whose rate is 0 before the task's end.

    Raises:
        ValueError: a rate that falls below 0, with which an optimizer climbs, or a schedule that ends before the task.
    """
    kind = type(scheduler).__name__
    follow = (
        "lr_scheduler={'name': 'cosine', 'warmup_ratio': 0.03} (TaskSchedule) follows the tasks, as does any "
        "function with a parameter num_training_steps."
    )
    try:
        rates = _rates(scheduler, optimizer, length)
    except ValueError as error:  # as OneCycleLR's, which counts its steps
        raise ValueError(
            f"lr_scheduler: {kind} does not last the {length} {interval}s of {name}: {error}; {follow}"
        ) from error
    nothing = 1e-9 * max(rates, default=0.0)  # some schedules sum up to their 0
    below = next((number for number, rate in enumerate(rates) if rate < -nothing), None)
    if below is not None:
        raise ValueError(
            f"lr_scheduler: the rate of {kind} is {rates[below]:.3g} at {interval} {below} of the {length} of {name}; "
            f"expected none below 0. {follow}"
        )
    counted = _own_length(scheduler)
    # A warm-up may begin at 0; what comes after the first rate above 0 and is 0 trains nothing.
    risen = next((number for number, rate in enumerate(rates) if rate > nothing), len(rates))
    idle = sum(rate <= nothing for rate in rates[risen:])
    if counted is not None and counted != length:
        rank_zero_warn(
            f"lr_scheduler: {kind} is made for {counted} {interval}s, and {name} has {length}. Its rate does not end "
            f"where the task ends; {follow}"
        )
    elif idle:
        rank_zero_warn(
            f"lr_scheduler: the rate of {kind} is 0 in {idle} of the {length} {interval}s of {name}, which train "
            f"nothing; {follow}"
        )


def _rates(scheduler: Any, optimizer: Optimizer, length: int) -> list[float]:
    """The largest rate of every step, by a copy of the scheduler over an optimizer of one number.

    Empty for schedulers that are no torch ones, that wait for a metric, or that cannot be copied.
    """
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return []
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in groups], lr=0.0)
    for group, given in zip(stand_in.param_groups, copy.deepcopy(groups), strict=True):
        group.update(given)
    try:
        copied = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    except Exception:  # a user's, that holds a file or a lock; it is only looked at
        return []
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer between those of the scheduler
        for _ in range(length):
            rates.append(max(float(group["lr"]) for group in stand_in.param_groups))
            copied.step()
    return rates


def task_length(trainer: Any, interval: str = "step") -> tuple[str, int]:
    """Return the name and the length of what one optimizer is made for: a task of a stream, or the whole fit.

    A stream whose optimizer nobody makes again at the tasks' boundaries (no ``SequentialTuning``) is one piece.

    Args:
        trainer: of the running fit, whose current epoch determines the task.
        interval: ``"step"``: optimizer steps, with accumulation, ranks, ``limit_train_batches`` and ``max_steps``;
            ``"epoch"``: the trainer's epochs.

    Raises:
        UnknownLengthError: the length is not known: endless data or epochs, or a stream that does not give it.
    """
    stream = task_stream(trainer)
    if stream is None:
        length = trainer.max_epochs if interval == "epoch" else trainer.estimated_stepping_batches
        if length in (None, -1, math.inf):
            raise UnknownLengthError(
                f"the schedule asks for the fit's {interval}s, which are not known; give Trainer(max_epochs=...) and "
                "data with a length, or Trainer(max_steps=...)."
            )
        return "the fit", int(length)
    spans = {span.index: span for span in map(stream.task_at_epoch, range(stream.total_epochs))}
    name = "the stream"
    if any(getattr(callback, "handles_task_boundaries", False) for callback in callbacks_of(trainer)):
        current = stream.task_at_epoch(min(trainer.current_epoch, stream.total_epochs - 1))
        spans, name = {current.index: current}, f"task {current.index} ({current.task.name!r})"
    if interval == "epoch":
        return name, sum(span.last_epoch - span.first_epoch + 1 for span in spans.values())
    if (counted := counted_stream(stream)) is None:
        raise UnknownLengthError(
            f"the schedule asks for the task's optimizer steps; {type(stream).__name__} has to give them by "
            "task_steps(index) -> int, as CVITDataModule does."
        )
    steps = sum(counted.task_steps(index) for index in spans)
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
    if isinstance(scheduler, LinearLR):
        return scheduler.total_iters if scheduler.end_factor < scheduler.start_factor else None
    if isinstance(scheduler, LambdaLR):  # transformers' functions bind their length
        counted = [getattr(function, "keywords", {}).get(_STEPS) for function in scheduler.lr_lambdas]
        return next((number for number in counted if isinstance(number, int)), None)
    if isinstance(scheduler, SequentialLR):
        last = _own_length(scheduler._schedulers[-1])
        return None if last is None else scheduler._milestones[-1] + last
    if isinstance(scheduler, ChainedScheduler):
        known = [number for number in map(_own_length, scheduler._schedulers) if number is not None]
        return max(known, default=None)
    total = getattr(scheduler, "total_steps", None)  # OneCycleLR
    return total if isinstance(total, int) else None
