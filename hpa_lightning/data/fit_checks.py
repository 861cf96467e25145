"""What a stream of tasks asks of Lightning's fit loop."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

# What Lightning makes of `max_epochs=None` before datamodules are set up: 1000, or -1 where `max_steps` is given.
_UNSET = (None, -1, 1000)


def check_fit(trainer: Any, tasks: int, total_epochs: int) -> None:
    """Check the trainer's settings and set ``max_epochs`` where the user has not.

    Raises:
        MisconfigurationException: the loaders would not follow the tasks, ``max_epochs`` contradicts the stream, or
            ``overfit_batches``, which asks for another order.
    """
    if trainer.overfit_batches:
        raise MisconfigurationException(
            f"Trainer(overfit_batches={trainer.overfit_batches}) takes the batches in the order of the records; a "
            "stream draws the order of each epoch. Use limit_train_batches, or a Task with few records and more epochs."
        )
    if tasks > 1 and trainer.reload_dataloaders_every_n_epochs != 1:
        raise MisconfigurationException(
            f"{tasks} tasks are streamed inside one fit; pass Trainer(reload_dataloaders_every_n_epochs=1). With "
            f"{trainer.reload_dataloaders_every_n_epochs} the later tasks would be trained on other tasks' data."
        )
    if trainer.fast_dev_run:
        return
    if trainer.max_epochs in _UNSET:
        trainer.fit_loop.max_epochs = total_epochs
        rank_zero_info(f"The stream has {tasks} tasks; max_epochs is {total_epochs}.")
    elif trainer.max_epochs != total_epochs:
        raise MisconfigurationException(
            f"Trainer(max_epochs={trainer.max_epochs}), but the {tasks} tasks take {total_epochs} epochs together; "
            "leave max_epochs out, and set `epochs` or `steps` of each task."
        )
    if tasks > 1 and not any(getattr(item, "handles_task_boundaries", False) for item in trainer.callbacks):
        rank_zero_warn(
            f"{tasks} tasks are streamed but no callback handles their boundaries: adapters are not merged and the "
            "optimizer's state of one task continues into the next. Add hpa_lightning.callbacks.SequentialTuning()."
        )


def repeat_epoch_end(trainer: L.Trainer) -> None:
    """Make a fit that resumes after an epoch's last batch run the end of that epoch.

    A checkpoint written after the last batch (``ModelCheckpoint(every_n_train_steps=...)`` does this) holds an epoch
    that is trained but not ended. Lightning 2.6 counts it as ended, so that ``on_train_epoch_end`` and with it the
    task's end (fusion, merge, evaluation) would be left out, and starts the next epoch with the old one's number of
    batches. With the flag cleared the loop finds no batch left and ends the epoch as usual.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    if loop.restarting and epochs.started > epochs.processed:
        loop.epoch_loop.batch_progress.is_last_batch = False
