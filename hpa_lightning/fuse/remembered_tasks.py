"""The file of earlier tasks that a fusion reads, and the one that it is going to write."""

from __future__ import annotations

import warnings
from pathlib import Path

from hpa_lightning.calibration.earlier_tasks import EarlierTasks
from hpa_lightning.fuse.fusion_job import FusionJob


def read_earlier_tasks(
    job: FusionJob, path: str | Path | None, save_memory: str | Path | None, name: str
) -> EarlierTasks | None:
    """Read what a fusion is to remember, and check what it is to write against that.

    Args:
        job: whose layers are asked for.
        path: the file of the tasks before; nothing is remembered when ``None``.
        save_memory: the file to be written, if there is one.
        name: the task's.

    Raises:
        ValueError: a file that does not fit, or one in the place of the new one that this fusion has not written.
    """
    widths = {layer.name_in_blocks: layer.in_features for layer in job.by_name.values()}
    earlier = None if path is None else EarlierTasks.read(path, widths, job.blocks, job.model_type)
    tasks = () if earlier is None else earlier.tasks
    if name in tasks:
        warnings.warn(
            f"{path} remembers a task {name!r} already. If it is this one, the update is bent away from its own "
            "inputs; if not, give it another task_name.",
            stacklevel=3,
        )
    if save_memory is None:
        return earlier
    if earlier is not None and path is not None and (lost := earlier.lost(path, save_memory)):
        warnings.warn(lost, stacklevel=3)
    if Path(save_memory).exists():  # of this fusion, which was killed after it had written that
        there = EarlierTasks.read(save_memory, widths, job.blocks, job.model_type).tasks
        if there != (*tasks, name):
            raise ValueError(
                f"{save_memory} exists already and remembers {', '.join(there)}; expected a new file, or one of this "
                f"fusion, with {', '.join((*tasks, name))}. Choose another file for the memory, or remove it."
            )
    return earlier
