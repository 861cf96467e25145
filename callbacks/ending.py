"""What is left when a fit ends: whether its tasks have ended, and a checkpoint that holds the model that counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

if TYPE_CHECKING:
    from hpa_lightning.callbacks.task import TaskCallback

FINISHED = "finished.ckpt"


def unfinished(trainer: L.Trainer) -> str | None:
    """Say in one sentence what a fit that is over has left undone; ``None`` if nothing."""
    callbacks: list[TaskCallback] = [callback for callback in trainer.callbacks if hasattr(callback, "task_state")]
    if not callbacks or trainer.fast_dev_run:
        return None
    state = callbacks[0].task_state(trainer)
    if state["open_task"] is not None:
        return (
            f"The fit stopped in the middle of task {state['open_task']} ({state['task']!r}); its end (fusion, merge, "
            "evaluation) did not run. Resume from the last checkpoint to finish it."
        )
    done, tasks = state["finished_tasks"], state["tasks"]
    if tasks is None or done >= tasks or any(callback.ended_the_stream for callback in callbacks):
        return None
    return (
        f"The fit stopped after {done} of {tasks} tasks: max_steps was reached, or a callback stopped the trainer "
        "(EarlyStopping stops the stream, not a task). Resume from the last checkpoint to train the others."
    )


def save_after_end(trainer: L.Trainer, ended_at: float, late: bool) -> str | None:
    """Write a checkpoint of the model after its task's end where Lightning's own are all from before.

    ``last.ckpt`` (``save_last``) is brought up to date if it is older than the end, as ``every_n_train_steps`` leaves
    it. If the task ended after all checkpoints (``late``), and there is no ``last.ckpt``, ``finished.ckpt`` is written
    beside them. A trainer without ``ModelCheckpoint`` saves nothing. Every process has to call it.

    Args:
        trainer: whose strategy is still set up.
        ended_at: when the task ended, in seconds since the epoch.
        late: the task ended after the epoch's checkpoints were written.

    Returns:
        The file that was written, if any.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.dirpath:
            continue
        last = callback.last_model_path if callback.save_last else ""
        if not last and not late:
            continue
        path = trainer.strategy.broadcast(last or os.path.join(callback.dirpath, FINISHED))
        stale = late or not Path(path).exists() or Path(path).stat().st_mtime < ended_at
        if trainer.strategy.broadcast(stale):
            if trainer.is_global_zero and Path(path).is_symlink():
                Path(path).unlink()  # the file behind a link is another checkpoint
            trainer.save_checkpoint(path, callback.save_weights_only)
            return str(path)
        return None
    return None
