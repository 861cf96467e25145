"""The base of every callback that acts at task boundaries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from hpa_lightning.callbacks.allow_changes import (
    FIT,
    check_optimizers,
    check_settings,
    fit_settings,
    optimizer_settings,
)
from hpa_lightning.callbacks.checkpoint_files import finish_writing, write_whole_checkpoints
from hpa_lightning.callbacks.current_task import (
    CurrentTask,
    current_task,
    is_last_batch,
    is_last_epoch,
    stops,
    task_by_index,
)
from hpa_lightning.callbacks.divergence import DivergenceWatch, warn_of_frozen
from hpa_lightning.callbacks.event_log import EventLog
from hpa_lightning.callbacks.fit_end import Marks, checkpoint_marks, save_after_end, unfinished
from hpa_lightning.callbacks.kept_weights import Digest, LeftModel, check_unmoved, digest
from hpa_lightning.callbacks.parts import Part, explain_unknown_arguments
from hpa_lightning.callbacks.phases import EndPhase, StartPhase, check_phase
from hpa_lightning.callbacks.process_exit import exit_cleanly_at_exit
from hpa_lightning.callbacks.processes import (
    loader_facts,
    model_facts,
    require_agreement,
    settings_facts,
    warn_of_summed_gradients,
)
from hpa_lightning.callbacks.running import on_its_device
from hpa_lightning.callbacks.trainer_checks import (
    check_begun,
    check_no_finder_resumes,
    check_strategy,
    check_weight_writers,
)
from hpa_lightning.data.needs import check_stream, fingerprint_of, task_stream
from hpa_lightning.modules.mllm import MLLMModule
from hpa_lightning.modules.task_state import TASK_STATE, unfinished_weights
from hpa_lightning.results.events import Event, TimeEvent
from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter
from hpa_lightning.trainer_attributes import (
    callbacks_of,
    is_dev_run,
    loaded_by_finder,
    results_directory,
    resumed_from,
)

P = TypeVar("P", bound=Part)


class TaskCallback(L.Callback):
    """Calls its subclasses when a task starts, continues after a resume, and ends.

    With a datamodule that streams tasks (one that has ``task_at_epoch``) the tasks are its tasks. With any other the
    whole ``fit`` is one task. Of all task callbacks of a trainer the first one watches the epochs and calls the others,
    so that all of them see one boundary, in the order of their phases (``start_order``, ``end_order``;
    :mod:`hpa_lightning.callbacks.phases`) whatever their order in the trainer's list.

    A task ends once, in ``on_train_epoch_end``, before checkpoints are written. Where the last epoch cannot be known
    there (a fit stopped by ``max_time`` or by another callback), it ends in ``on_train_end``; where Lightning finds
    nothing left to train and runs no loop (a resume after the last batch), in ``on_fit_end``. If all checkpoints that
    are left when the fit ends are from before its last task's end, one more is written (:func:`save_after_end`). A
    checkpoint from within an end continues with the callbacks that were not through.

    A loss, gradient or weight that is not finite stops the fit (:class:`DivergenceWatch`), and so does anything but an
    optimizer that writes weights between a task's end and the next one's start, or the end of the fit
    (:func:`check_unmoved`).

    A subclass is put together from parts (:class:`hpa_lightning.callbacks.parts.Part`), which it takes in with
    :meth:`own`. An argument that its constructor does not have is answered in its name, with the nearest name.

    Hooks: ``setup``, ``on_fit_start``, ``on_train_start``, ``on_train_epoch_start``, ``on_before_backward``,
    ``on_before_optimizer_step``, ``on_train_batch_end``, ``on_train_epoch_end``, ``on_train_end``, ``on_fit_end``,
    ``on_exception``, ``on_save_checkpoint``, ``on_load_checkpoint``. A subclass that has one calls ``super()``'s.
    State: the open task, whether its last batch was trained, whether this callback is through its end, the number of
    finished tasks, the recorded events, and what its parts bring. The checkpoint's key ``"hpa_lightning"`` holds what
    :meth:`task_state` returns.
    Strategies: one device, DDP, FSDP2 (``ModelParallelStrategy``); the others are refused in ``setup``.
    """

    start_order: ClassVar[int] = StartPhase.LAST
    """Where among the other callbacks ``on_task_open``, ``on_task_start`` and ``on_task_resume`` are called."""
    end_order: ClassVar[int] = EndPhase.OTHER
    """Where ``on_task_end`` is called."""
    refuses_sharding: str | None = None
    """Why FSDP2 is refused; ``None``: it is supported."""
    changes_weights_at_end: bool = False
    """The model that counts is the one after the task's end: a checkpoint from before is unfinished."""
    ended_the_stream: bool = False
    """The callback stopped the fit between two tasks because it was asked to: the fit is not cut short."""
    shapes_training: ClassVar[bool] = True
    """What is trained depends on the callback, so that a fit is resumed with the same settings of it."""
    free_settings: ClassVar[frozenset[str]] = frozenset({"batch_size", "save_memory"})
    """Settings, also within dataclasses, that may differ on a resume: they say how something is computed, not what."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_phase(cls.__name__, "start_order", cls.start_order, StartPhase)
        check_phase(cls.__name__, "end_order", cls.end_order, EndPhase)
        if "__init__" in cls.__dict__:
            cls.__init__ = explain_unknown_arguments(cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        for part in self.__dict__.get("parts", ()):
            if name in part.follows:
                setattr(part, part.follows[name], value)

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._open_task: int | None = None
        self._task_name = ""
        self._trained = False  # the open task's last batch
        self._ended = False  # this callback is through the open task's end
        self._ending = False  # the open task's end has begun
        self._torn: str | None = None
        self._finished_tasks = 0
        self._events = EventLog()
        self._times: Counter[tuple[Any, Any]] = Counter()  # how many of a task and phase the events hold
        self._restored = False
        self._of_a_finder = False
        self._started_at: float | None = None
        self._train_seconds = 0.0
        self._before_end: Marks | None = None  # the checkpoints there were when the last task of this fit ended
        self._kept: Digest | None = None  # of the weights then, until the next task starts
        self._left: LeftModel | None = None  # the model then, for the next fit with this callback
        self._divergence = DivergenceWatch()
        self._settings: dict[str, Any] | None = None  # of the whole fit, where this is the first task callback
        self._saved_optimizers: list[dict[str, Any]] | None = None

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def own(self, part: P) -> P:
        """Add a part, which is called in the fit from now on; return it."""
        self.parts.append(part)
        return part

    def on_fit_begins(self, trainer: L.Trainer, resumed: bool) -> None:
        """Called on all callbacks before anything is recorded; ``resumed``: a checkpoint was loaded."""

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called on all callbacks before ``on_task_start``: what may fail comes before what takes long."""
        for part in self.parts:
            part.on_task_open(trainer, pl_module, task)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called before the first batch of a task."""

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called instead of ``on_task_start`` when a checkpoint from within the task was loaded."""

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called after the last batch of a task, before checkpoints are written."""

    def on_restored(self, trainer: L.Trainer) -> None:
        """Called once after a checkpoint was loaded, before ``on_task_resume``; the events are written again."""
        self._write(trainer, self._events)

    def on_tasks_done(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called at the end of a fit, when nothing is left to train and to end; the model may be on the CPU."""

    def record(self, trainer: L.Trainer, event: Event | str, **fields: Any) -> None:
        """Append an event to the run's result file (on rank zero) and keep it in the checkpoint.

        Args:
            trainer: of the run.
            event: one of :mod:`hpa_lightning.results.events`, or the name of a kind of your own with its ``fields``.
        """
        entry = event.record() if isinstance(event, Event) else {"event": event, **fields}
        self._events.append(entry)
        self._write(trainer, [entry])

    @contextmanager
    def timed(self, trainer: L.Trainer, task_index: int, phase: str) -> Iterator[None]:
        """Record the seconds spent inside as a ``time`` event."""
        start = time.monotonic()
        yield
        self._record_time(trainer, task_index, phase, time.monotonic() - start)

    def _record_time(self, trainer: L.Trainer, task_index: int, phase: str, seconds: float) -> None:
        """Record a time; its number tells several of a phase apart, and those of a resumed run from a repeated one."""
        number = self._times[task_index, phase]
        self._times[task_index, phase] += 1
        seconds = round(seconds, 3)
        event = TimeEvent(step=task_index, phase=phase, seconds=seconds, by=self.state_key, number=number)
        self.record(trainer, event)

    def starts_writing(self, what: str) -> None:
        """To be called in ``on_task_end`` before the first layer is written, which cannot be repeated.

        A checkpoint that is saved on an error between here and the end of ``on_task_end`` is refused when it is loaded.

        Args:
            what: what is done to the weights, for the message.
        """
        self._torn = what

    # -- Lightning hooks ---------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._restored = self.ended_the_stream = False
            self._before_end = self._kept = None
            self._divergence = DivergenceWatch()
            check_strategy(trainer.strategy, self)
            check_weight_writers(trainer, self)
            exit_cleanly_at_exit(trainer)
            if self._is_leader(trainer):
                shaping = any(callback.shapes_training for callback in task_callbacks(trainer))
                write_whole_checkpoints(trainer, pl_module if shaping else None)
                check_stream(trainer, type(self).__name__)
                self._settings, self._saved_optimizers = fit_settings(trainer, task_callbacks(trainer)), None
            for part in self.parts:
                part.setup(trainer, pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for part in self.parts:
            part.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_leader(trainer):
            if trainer.world_size > 1:
                require_agreement(trainer, settings_facts({**(self._settings or {}), **fingerprint_of(trainer)}))
                warn_of_summed_gradients(trainer, pl_module)
            self._begin(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_leader(trainer):
            return
        require_agreement(trainer, loader_facts(trainer))
        current = current_task(trainer, self._finished_tasks)
        if self._open_task == current.index:
            return
        if self._open_task is not None:
            # A checkpoint written after the last batch of a task and before its end: trained, but not yet fused.
            self._end(trainer, pl_module, task_by_index(trainer, self._open_task))
            current = current_task(trainer, self._finished_tasks)
        self._check_kept(trainer, pl_module)
        if current.last_epoch is None and resumed_from(trainer) is not None and current.index > 0:
            rank_zero_warn(
                "The checkpoint is of a fit whose task had ended: what is trained now counts as another task, with its "
                "own calibration, fusion and merge, though the optimizer goes on. A longer fit of one task is one "
                "that is started anew, with the larger max_epochs."
            )
        self._train_seconds = 0.0
        for callback in task_callbacks(trainer):
            callback._open_task, callback._task_name = current.index, current.name
            callback._trained = callback._ended = False
        self._dispatch(trainer, pl_module, "on_task_open", current)
        self._dispatch(trainer, pl_module, "on_task_start", current)
        self._require_one_model(trainer, pl_module)
        self._started_at = time.monotonic()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if self._is_leader(trainer):
            self._divergence.check_loss(trainer, pl_module, loss)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self._is_leader(trainer):
            self._divergence.check_gradients(trainer, pl_module, optimizer)
        for part in self.parts:
            part.on_before_step()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_leader(trainer):
            self._divergence.check_batch_end(trainer, pl_module)
            trained = is_last_batch(trainer)
            for callback in task_callbacks(trainer):  # before ModelCheckpoint, which is the last callback
                callback._trained = trained

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_leader(trainer) or self._open_task is None:
            return
        current = task_by_index(trainer, self._open_task)
        if current.last_epoch is None:
            ended = stops(trainer) or is_last_epoch(trainer)
        else:
            ended = trainer.current_epoch >= current.last_epoch and (self._trained or not stops(trainer))
        if ended:
            self._end(trainer, pl_module, current)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_leader(trainer):
            self._end_late(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_leader(trainer):
            return
        if any(callback._restored for callback in task_callbacks(trainer)):
            # Nothing was left to train, so that Lightning ran none of the hooks above.
            with on_its_device(trainer, pl_module):
                self._begin(trainer, pl_module)
                self._end_late(trainer, pl_module)
        self._check_kept(trainer, pl_module)
        if reason := unfinished(trainer):
            rank_zero_warn(f"{reason} The results are those of a part of the stream.")
        self._notify_module(trainer, pl_module)
        for callback in task_callbacks(trainer):
            callback.on_tasks_done(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._notify_module(trainer, pl_module)

    def task_state(self, trainer: L.Trainer) -> dict[str, Any]:
        """The state of the weights, as checkpoints record it.

        Returns:
            ``open_task``: index of the task whose end has not run, or ``None``; ``task``: its name; ``trained``:
            whether its last batch was trained; ``pending``: the callbacks whose change of the weights at the task's
            end is still to come; ``finished_tasks``, ``tasks``: how many, of how many (``None`` without a stream).
        """
        stream = task_stream(trainer)
        return {
            "open_task": self._open_task,
            "task": self._task_name if self._open_task is not None else None,
            "trained": self._trained,
            "pending": [
                type(callback).__name__
                for callback in task_callbacks(trainer)
                if callback.changes_weights_at_end and self._open_task is not None and not callback._ended
            ],
            "finished_tasks": self._finished_tasks,
            "tasks": None if stream is None else len(stream.tasks),
        }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._is_leader(trainer):
            checkpoint[TASK_STATE] = self.task_state(trainer)
            checkpoint[FIT] = {"settings": self._settings, "optimizers": optimizer_settings(trainer)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._of_a_finder = loaded_by_finder(trainer)
        if not self._is_leader(trainer):
            return
        if self._of_a_finder:
            return
        if trainer.state.fn == "fit":
            check_no_finder_resumes(trainer)
            saved = checkpoint.get(FIT) or {}
            check_settings(trainer, saved.get("settings"), self._settings or {})
            self._saved_optimizers = saved.get("optimizers")
            return
        if isinstance(pl_module, MLLMModule):
            return  # it says it itself
        if reason := unfinished_weights(checkpoint.get(TASK_STATE)):
            rank_zero_warn(f"{trainer.state.fn and trainer.state.fn.value}: {reason}.")

    def state_dict(self) -> dict[str, Any]:
        running = 0.0 if self._started_at is None else time.monotonic() - self._started_at
        state: dict[str, Any] = {}
        for part in self.parts:
            state |= part.state_dict()
        return {
            **state,
            "open_task": self._open_task,
            "task_name": self._task_name,
            "trained": self._trained,
            "ended": self._ended,
            "torn": self._torn,
            "finished_tasks": self._finished_tasks,
            **self._events.state(),
            "train_seconds": self._train_seconds + running,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (torn := state_dict.get("torn")) is not None:
            raise ValueError(
                f"the checkpoint was saved on an error while {type(self).__name__} was {torn}: some layers hold old, "
                "others new weights. Resume from a checkpoint that was written before."
            )
        self._open_task = state_dict["open_task"]
        self._task_name = state_dict.get("task_name", "")
        self._trained = state_dict.get("trained", False)  # not in checkpoints of version 0.1
        self._ended = state_dict.get("ended", False)
        self._finished_tasks = state_dict["finished_tasks"]
        self._events = EventLog.from_state(state_dict)
        times = (entry for entry in self._events if entry["event"] == TimeEvent.event)
        self._times = Counter((entry.get("step"), entry.get("phase")) for entry in times)
        self._train_seconds = state_dict["train_seconds"]
        self._restored = self._restored or not self._of_a_finder
        self._of_a_finder = False
        for part in self.parts:
            part.load_state_dict(state_dict)

    # -- how the boundaries are found --------------------------------------------------------------------------------

    def _is_leader(self, trainer: L.Trainer) -> bool:
        return task_callbacks(trainer)[0] is self

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a fit where the checkpoint was written, if one was loaded."""
        callbacks = task_callbacks(trainer)
        restored = [callback for callback in callbacks if callback._restored]
        check_no_finder_resumes(trainer, bool(restored))
        check_optimizers(trainer, self._saved_optimizers)
        warn_of_frozen(pl_module)
        for callback in callbacks:
            callback._ending, callback._torn = False, None
            if not restored:
                callback._open_task, callback._trained, callback._ended = None, False, False  # left by a crash
            elif callback not in restored:
                for name in ("_open_task", "_task_name", "_trained"):
                    setattr(callback, name, getattr(restored[0], name))
                callback._finished_tasks = restored[0]._finished_tasks
            callback._restored = False
        if not restored:
            check_begun(trainer, callbacks)
            self._tell_another_model(pl_module, callbacks)
        for callback in callbacks:
            callback.on_fit_begins(trainer, bool(restored))
        for callback in restored:
            callback.on_restored(trainer)
        if self._open_task is not None:
            self._dispatch(trainer, pl_module, "on_task_resume", task_by_index(trainer, self._open_task))
            self._require_one_model(trainer, pl_module)
            self._started_at = time.monotonic()

    def _tell_another_model(self, pl_module: L.LightningModule, callbacks: Sequence[TaskCallback]) -> None:
        """Warn where callbacks that have ended a task go on with another model than the one that was left."""
        if all(callback._left is None for callback in callbacks):
            return
        now = digest(pl_module)
        differing = {
            type(callback).__name__: names
            for callback in callbacks
            if callback._left is not None and (names := callback._left.differing(now))
        }
        if differing:
            names = next(iter(differing.values()))
            rank_zero_warn(
                f"{', '.join(differing)} ended a task before, and {len(names)} parameters ({', '.join(names[:3])}) are "
                "not as that task left them. What a callback remembers (its safety set, earlier tasks) is of that "
                "model; make new callbacks for another one."
            )

    def _end_late(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the open task when the fit has trained all that it will, and see that a checkpoint holds what is kept."""
        late = False
        if self._open_task is not None:
            current = task_by_index(trainer, self._open_task)
            if current.last_epoch is not None and not self._trained:
                return  # told in on_fit_end
            self._end(trainer, pl_module, current)
            late = True
        if self._before_end is not None:
            written = save_after_end(trainer, self._before_end, late)
            if late:
                rank_zero_warn(
                    f"Task {current.index} ({current.name!r}) ended after the last checkpoint was written. "
                    + (
                        f"The model as it is now is in {written}; earlier checkpoints hold the one from before its end."
                        if written
                        else "Save the model again (`trainer.save_checkpoint`) to keep what the task's end changed."
                    )
                )
            elif written:
                rank_zero_info(f"The finished model is in {written}, which was written when the fit ended.")

    def _notify_module(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_leader(trainer) and trainer.state.fn == "fit" and isinstance(pl_module, MLLMModule):
            pl_module.keep_weights_state(self.task_state(trainer))

    def _check_kept(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._kept is not None:
            check_unmoved(trainer, pl_module, self._kept)
            self._kept = None

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        finish_writing(trainer)
        self._divergence.check_weights(trainer, pl_module)
        self._require_one_model(trainer, pl_module)
        if self._started_at is not None:
            self._train_seconds += time.monotonic() - self._started_at
            self._started_at = None
            self._record_time(trainer, task.index, "train", self._train_seconds)
        for callback in task_callbacks(trainer):
            if not callback._ended:
                for part in callback.parts:
                    part.on_task_trained(trainer, pl_module, task)
            callback._ending = True
        self._dispatch(trainer, pl_module, "on_task_end", task)
        for callback in task_callbacks(trainer):
            callback._open_task = None
            callback._trained = callback._ending = callback._ended = False
            callback._finished_tasks = task.index + 1
        self._before_end, self._kept = checkpoint_marks(trainer), digest(pl_module)
        left = LeftModel.of(pl_module, self._kept)
        for callback in task_callbacks(trainer):
            callback._left = left

    def _require_one_model(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A mask or weights that differ between processes would never be noticed: each keeps to its own."""
        if trainer.world_size > 1:
            require_agreement(trainer, model_facts(pl_module, task_callbacks(trainer)))

    def _dispatch(self, trainer: L.Trainer, pl_module: L.LightningModule, hook: str, task: CurrentTask) -> None:
        """Call a hook of every task callback that is not through the task's end, in the hook's order."""

        def order(callback: TaskCallback) -> tuple[int, int]:
            if hook != "on_task_end":
                return callback.start_order, 0
            of_steps = callback.start_order if callback.end_order == EndPhase.RESTORING else 0
            return callback.end_order, of_steps

        for callback in sorted(task_callbacks(trainer), key=order):
            if not callback._ended:
                getattr(callback, hook)(trainer, pl_module, task)
                if hook == "on_task_end":
                    callback._ended, callback._torn = True, None

    def _write(self, trainer: L.Trainer, events: Iterable[Mapping[str, Any]]) -> None:
        directory = results_directory(trainer)
        if trainer.is_global_zero and not is_dev_run(trainer):
            writer = ResultWriter(directory / RESULT_FILE)
            for entry in events:
                writer.write(entry)


def task_callbacks(trainer: L.Trainer) -> list[TaskCallback]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, TaskCallback)]
