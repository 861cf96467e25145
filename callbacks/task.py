"""The base of every callback that acts at task boundaries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hpa_lightning.modules.sharding import whole
from hpa_lightning.result_file import RESULT_FILE, ResultWriter


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


class TaskCallback(L.Callback):
    """Tells its subclasses when a task starts, goes on after a resume, and ends.

    With a datamodule that streams tasks (one that has ``task_at_epoch``) the tasks are its tasks. With any other the
    whole ``fit`` is one task. Of all task callbacks of a trainer the first one watches the epochs and calls the others,
    so that all of them see one boundary, in the order of ``start_order`` and ``end_order`` whatever their order in
    the trainer's list.

    A task ends in ``on_train_epoch_end``, before checkpoints are written. Where the last epoch cannot be known there
    (a fit stopped by ``max_time`` or by another callback), it ends in ``on_train_end``, with a warning, since the
    last checkpoint holds the weights from before.

    Hooks: ``setup``, ``on_train_start``, ``on_train_epoch_start``, ``on_train_epoch_end``, ``on_train_end``.
    State: the open task, the number of finished ones, the recorded events.
    Strategies: one device, DDP, FSDP2 (``ModelParallelStrategy``); the others are refused in ``setup``.
    """

    start_order: ClassVar[int] = 50
    end_order: ClassVar[int] = 50
    refuses_sharding: str | None = None
    """Why FSDP2 is refused; ``None``: it is supported."""

    def __init__(self) -> None:
        self._open_task: int | None = None
        self._finished_tasks = 0
        self._events: list[dict[str, Any]] = []
        self._restored = False
        self._started_at: float | None = None
        self._train_seconds = 0.0

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called before the first batch of a task."""

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called instead of ``on_task_start`` when a checkpoint from within the task was loaded."""

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called after the last batch of a task, before checkpoints are written."""

    def record(self, trainer: L.Trainer, event: str, **fields: Any) -> None:
        """Append an event to the run's result file (on rank zero) and keep it in the checkpoint."""
        entry = {"event": event, **fields}
        self._events.append(entry)
        self._write(trainer, [entry])

    @contextmanager
    def timed(self, trainer: L.Trainer, task_index: int, phase: str) -> Iterator[None]:
        """Record the seconds spent inside as a ``time`` event."""
        start = time.monotonic()
        yield
        self.record(trainer, "time", step=task_index, phase=phase, seconds=round(time.monotonic() - start, 3))

    # -- Lightning hooks ---------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer.strategy, self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._restored:
            self._open_task = None  # what an earlier fit left open when it crashed
            return
        self._restored = False
        self._write(trainer, self._events)
        if self._is_leader(trainer) and self._open_task is not None:
            task = self._task_by_index(trainer, self._open_task)
            self._dispatch(trainer, pl_module, "on_task_resume", task)
            self._started_at = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_leader(trainer):
            return
        current = self._current_task(trainer)
        if self._open_task == current.index:
            return
        if self._open_task is not None:
            # A checkpoint written after the last batch of a task and before its end: trained, but not yet fused.
            self._end(trainer, pl_module, self._task_by_index(trainer, self._open_task))
            current = self._current_task(trainer)
        self._train_seconds = 0.0
        for callback in _task_callbacks(trainer):
            callback._open_task = current.index
        self._dispatch(trainer, pl_module, "on_task_start", current)
        self._started_at = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_leader(trainer) or self._open_task is None:
            return
        current = self._task_by_index(trainer, self._open_task)
        if current.last_epoch is not None:
            cut_short = trainer.fit_loop.batch_idx + 1 < trainer.num_training_batches  # by max_steps, say
            ended = trainer.current_epoch >= current.last_epoch and not cut_short
        else:
            ended = _is_last_epoch(trainer)
        if ended:
            self._end(trainer, pl_module, current)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_leader(trainer) or self._open_task is None:
            return
        current = self._task_by_index(trainer, self._open_task)
        if current.last_epoch is not None:
            rank_zero_warn(
                f"The fit stopped in the middle of task {current.index} ({current.name!r}); its end (fusion, merge, "
                "evaluation) did not run. Resume from the last checkpoint to finish it."
            )
            return
        rank_zero_warn(
            "The fit stopped before its last epoch was known; the task ends now, after the last checkpoint was "
            "written. Save the model again (`trainer.save_checkpoint`) to keep what the task's end changed."
        )
        self._end(trainer, pl_module, current)

    def state_dict(self) -> dict[str, Any]:
        running = 0.0 if self._started_at is None else time.monotonic() - self._started_at
        return {
            "open_task": self._open_task,
            "finished_tasks": self._finished_tasks,
            "events": self._events,
            "train_seconds": self._train_seconds + running,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._open_task = state_dict["open_task"]
        self._finished_tasks = state_dict["finished_tasks"]
        self._events = list(state_dict["events"])
        self._train_seconds = state_dict["train_seconds"]
        self._restored = True

    # -- how the boundaries are found --------------------------------------------------------------------------------

    def _is_leader(self, trainer: L.Trainer) -> bool:
        return _task_callbacks(trainer)[0] is self

    def _current_task(self, trainer: L.Trainer) -> CurrentTask:
        stream = task_stream(trainer)
        if stream is None:
            return CurrentTask(self._finished_tasks, "fit", None)
        return _from_span(stream.task_at_epoch(trainer.current_epoch))

    def _task_by_index(self, trainer: L.Trainer, index: int) -> CurrentTask:
        stream = task_stream(trainer)
        if stream is None:
            return CurrentTask(index, "fit", None)
        spans = (stream.task_at_epoch(epoch) for epoch in range(stream.total_epochs))
        return next(_from_span(span) for span in spans if span.index == index)

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if self._started_at is not None:
            self._train_seconds += time.monotonic() - self._started_at
            self._started_at = None
            self.record(trainer, "time", step=task.index, phase="train", seconds=round(self._train_seconds, 3))
        self._dispatch(trainer, pl_module, "on_task_end", task)
        for callback in _task_callbacks(trainer):
            callback._open_task = None
            callback._finished_tasks = task.index + 1

    def _dispatch(self, trainer: L.Trainer, pl_module: L.LightningModule, hook: str, task: CurrentTask) -> None:
        order = "end_order" if hook == "on_task_end" else "start_order"
        for callback in sorted(_task_callbacks(trainer), key=lambda callback: getattr(callback, order)):
            getattr(callback, hook)(trainer, pl_module, task)

    def _write(self, trainer: L.Trainer, events: list[dict[str, Any]]) -> None:
        directory = results_directory(trainer)
        if trainer.is_global_zero and events:
            writer = ResultWriter(directory / RESULT_FILE)
            for entry in events:
                writer.write(entry)


def check_strategy(strategy: Strategy, asker: TaskCallback) -> None:
    """Refuse a strategy under which the callback's promises would not hold.

    Raises:
        MisconfigurationException: the strategy is not supported; the reason is given.
    """
    name, kind = type(asker).__name__, type(strategy).__name__
    if isinstance(strategy, ModelParallelStrategy):
        parallel = strategy.device_mesh["tensor_parallel"].size()
        if asker.refuses_sharding is None and parallel == 1:
            return
        pieces = f"tensor_parallel_size is {parallel}, and columns cut in pieces cannot be addressed; set it to 1"
        reason = asker.refuses_sharding or pieces
    elif isinstance(strategy, DeepSpeedStrategy):
        reason = (
            "DeepSpeed steps on fp32 copies of the weights that it keeps for itself and that overwrite what a callback "
            "writes into the model, and it builds its optimizer once, not for every task"
        )
    elif isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        return
    elif isinstance(strategy, FSDPStrategy):
        reason = "FSDP1 flattens the parameters, which then have no columns"
    else:
        reason = "it is none of those that the callbacks were tested with"
    raise MisconfigurationException(
        f"{name} does not support {kind}: {reason}. Supported are one device, strategy='ddp'"
        + ("." if asker.refuses_sharding else ", and FSDP2 (ModelParallelStrategy with tensor_parallel_size=1).")
    )


def task_stream(trainer: L.Trainer) -> Any | None:
    """Return the trainer's datamodule if it streams tasks, else ``None``."""
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule if hasattr(datamodule, "task_at_epoch") else None


def results_directory(trainer: L.Trainer) -> Path:
    """The folder of a run's results: the logger's folder, or ``default_root_dir`` without a logger.

    Every process has to call this, and as often as the others: ``trainer.log_dir`` is broadcast from rank zero.
    """
    return Path(trainer.log_dir or trainer.default_root_dir)


def required_callback(trainer: L.Trainer, wanted: type, asker: object) -> Any:
    """Return the one callback of type ``wanted``.

    Raises:
        MisconfigurationException: there is none, or more than one.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, wanted)]
    if len(found) != 1:
        raise MisconfigurationException(
            f"{type(asker).__name__} works with exactly one {wanted.__name__} among the trainer's callbacks; "
            f"found {len(found)}."
        )
    return found[0]


def require_automatic_optimization(pl_module: L.LightningModule, asker: object) -> None:
    """Refuse a LightningModule that steps its optimizers itself.

    Raises:
        MisconfigurationException: it does.
    """
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(asker).__name__} needs automatic optimization; {type(pl_module).__name__} sets "
            "automatic_optimization = False."
        )


def _task_callbacks(trainer: L.Trainer) -> list[TaskCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, TaskCallback)]


def _from_span(span: Any) -> CurrentTask:
    return CurrentTask(span.index, span.task.name, span.last_epoch)


def _is_last_epoch(trainer: L.Trainer) -> bool:
    by_epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
    by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(by_epochs or by_steps or trainer.should_stop)


def cpu_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached whole copies on the CPU, for checkpoints; every process has to call it."""
    return {name: whole(tensor.detach()).to("cpu", copy=True) for name, tensor in tensors.items()}
