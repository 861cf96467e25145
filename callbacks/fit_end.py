"""What is left when a fit ends: whether its tasks have ended, and a checkpoint that holds the model that counts."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.callbacks import ModelCheckpoint

from hpa_lightning.callbacks.checkpoint_files import finish_writing
from hpa_lightning.modules.task_state import HasTaskState
from hpa_lightning.trainer_attributes import callbacks_of, is_dev_run

FINISHED = "finished.ckpt"

Marks = dict[str, dict[str, Any]]
"""Path of a checkpoint -> what its file system says of it."""


def unfinished(trainer: L.Trainer) -> str | None:
    """Say in one sentence what a fit that is over has left undone; ``None`` if nothing."""
    callbacks = [callback for callback in callbacks_of(trainer) if isinstance(callback, HasTaskState)]
    if not callbacks or is_dev_run(trainer):
        return None
    state = callbacks[0].task_state(trainer)
    if state["open_task"] is not None:
        return (
            f"The fit stopped in the middle of task {state['open_task']} ({state['task']!r}); its end (fusion, merge, "
            "evaluation) did not run. Resume from the last checkpoint to finish it."
        )
    done, tasks = state["finished_tasks"], state["tasks"]
    if tasks is None and done == 0:
        return (
            "The fit trained no task, and its callbacks did nothing: there was no batch, or the checkpoint is of a fit "
            "that had reached max_epochs or max_steps."
        )
    if tasks is None or done >= tasks or any(callback.ended_the_stream for callback in callbacks):
        return None
    return (
        f"The fit stopped after {done} of {tasks} tasks: max_steps was reached, or a callback stopped the trainer "
        "(EarlyStopping stops the stream, not a task). Resume from the last checkpoint to train the others."
    )


def saving(trainer: L.Trainer) -> list[ModelCheckpoint]:
    """The trainer's ``ModelCheckpoint``s, but for those that never write (``save_top_k=0`` without ``save_last``)."""
    return [
        callback
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint)
        and callback.dirpath
        and (callback.save_top_k != 0 or callback.save_last)
    ]


def checkpoint_marks(trainer: L.Trainer) -> Marks:
    """What the file systems say of the checkpoints that Lightning keeps, by their paths (that of the file, not a link).

    A checkpoint that is written again has another mark; no clock has to agree with another for that.
    """
    marks: Marks = {}
    for callback in saving(trainer):
        for path in (callback.best_model_path, callback.last_model_path, *callback.best_k_models):
            marks |= _mark(path)
    return marks


def save_after_end(trainer: L.Trainer, before: Marks, late: bool) -> str | None:
    """Write a checkpoint of the model after its task's end where Lightning's own are all from before.

    ``last.ckpt`` (``save_last``) is brought up to date if it is older than the end, as ``every_n_train_steps`` leaves
    it. Without one, ``finished.ckpt`` is written beside the others if all of them are from before the end: those of
    ``every_n_train_steps``, those of a validation, which runs before an epoch's end, the best of a ``monitor``. A
    trainer without a ``ModelCheckpoint`` that writes saves nothing. Every process has to call it.

    Args:
        trainer: whose strategy is still set up.
        before: what :func:`checkpoint_marks` returned when the task ended.
        late: the task ended after the epoch's checkpoints were written, and maybe after Lightning's ``on_train_end``.

    Returns:
        The file that was written, if any.
    """
    writers = saving(trainer)
    if not writers:
        return None
    finish_writing(trainer)
    callback = next((item for item in writers if item.save_last and item.last_model_path), writers[0])
    if not late and any(item.save_last and not item.last_model_path for item in writers):
        return None  # ModelCheckpoint.on_train_end writes its first one, after this
    last = callback.last_model_path if callback.save_last else ""
    marks = _mark(last) if last else checkpoint_marks(trainer)
    stale = late or all(before.get(path) == mark for path, mark in marks.items())
    if not trainer.strategy.broadcast(stale):
        return None
    path = trainer.strategy.broadcast(last or os.path.join(str(callback.dirpath), FINISHED))
    if trainer.is_global_zero and os.path.islink(path):
        os.unlink(path)  # the file behind a link is another checkpoint
    trainer.save_checkpoint(path, callback.save_weights_only)
    return str(path)


def _mark(path: str) -> Marks:
    if not path:
        return {}
    system, inner = url_to_fs(path)
    if isinstance(system, LocalFileSystem):
        inner = os.path.realpath(inner)
    try:
        return {inner: system.info(inner)}
    except OSError:  # deleted by now
        return {}
