"""The folder of a run: one run at a time, and never two in one folder."""

from __future__ import annotations

import json
import os
import uuid
import warnings
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from hpa_lightning.checkpoints import newest_checkpoint
from hpa_lightning.files import write_text
from hpa_lightning.results.completeness import unfinished_run
from hpa_lightning.results.result_file import RESULT_FILE
from hpa_lightning.results.run_results import RunResults

RUN_FILE = "run.json"
"""``{"run": identity}``; checkpoints hold the same."""

INITIAL_SCORES = "HPA_LIGHTNING_INITIAL_SCORES"
"""The environment variable by which a study tells its fits the folder in which they share the first scores."""

IN_USE = "another process fits into"
"""How the error begins that a fit ends with, where another one has the folder."""

_LOCK = ".run.lock"
_OF_A_RUN = (RESULT_FILE, RUN_FILE, "predictions", "report")
_OF_ITS_LOGGER = ("metrics.csv", "hparams.yaml", "config.yaml", "checkpoints")
_HELD: dict[Path, FileLock] = {}


def new_identity() -> str:
    """An identity that no other run has."""
    return uuid.uuid4().hex


def lock_folder(folder: Path) -> None:
    """Keep other processes from fitting into the folder until this one ends or :func:`unlock_folder` is called.

    Raises:
        ValueError: another process fits into it.
    """
    folder = folder.resolve()
    if folder in _HELD:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{IN_USE} {folder}; two runs in one folder would mix their results. Give this one a "
            "folder of its own (the logger's save_dir, or default_root_dir)."
        ) from None
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{folder} cannot be locked ({error}); make sure that no other run writes into it.", stacklevel=2)
        return
    _HELD[folder] = lock


def unlock_folder(folder: Path) -> None:
    """Let other processes fit into the folder."""
    if (lock := _HELD.pop(folder.resolve(), None)) is not None:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process fits into the folder."""
    folder = folder.resolve()
    if folder in _HELD or not (folder / _LOCK).exists():
        return False
    try:
        with FileLock(folder / _LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # lock_folder warns of it
        return False


def check_new_run(folder: Path, logs: bool = False) -> None:
    """See that a run can begin in the folder.

    What an interrupted run without any checkpoint has left there is put into a folder ``interrupted_1`` (then ``_2``,
    ...), with a warning.

    Args:
        folder: of the results.
        logs: what the loggers have written is put there too; only while the new run's have not begun to write.

    Raises:
        ValueError: the folder holds a finished run, or an interrupted one that can continue.
    """
    if not any((folder / name).exists() for name in (RESULT_FILE, RUN_FILE)):
        return
    reason = _missing(folder)
    if reason is None:
        raise ValueError(
            f"{folder} holds a finished run, which is not overwritten. Give the new one another folder (the logger's "
            "save_dir, or default_root_dir), or move the old one away."
        )
    checkpoint, _ = newest_checkpoint([folder])
    if checkpoint is not None:
        raise ValueError(
            f"{folder} holds an interrupted run ({reason}). Continue it (fit --ckpt_path last, or ckpt_path="
            f"{str(checkpoint)!r}), give the new one another folder, or move the old one away."
        )
    if not (folder / RESULT_FILE).exists():
        return  # killed before it had anything to report
    aside = next(path for number in count(1) if not (path := folder / f"interrupted_{number}").exists())
    aside.mkdir()
    for name in (*_OF_A_RUN, *(_OF_ITS_LOGGER if logs else ())):
        if (folder / name).exists():
            os.replace(folder / name, aside / name)
    warnings.warn(
        f"{folder} held an interrupted run without a checkpoint to continue from; what it wrote is in {aside}.",
        stacklevel=2,
    )


def claim_folder(folder: Path, identity: str, resumed: bool, changed: bool = False) -> None:
    """Make the folder that of one run, before anything of it is written there.

    Args:
        folder: of the results.
        identity: of the run.
        resumed: a checkpoint of the run was loaded.
        changed: it continues with other data or settings.

    Raises:
        ValueError: another process writes there, or the folder holds another run, see :func:`check_new_run`; or a
            finished run would be changed.
    """
    lock_folder(folder)
    held = _identity(folder)
    if resumed and held is not None and held != identity:
        raise ValueError(
            f"the checkpoint is of another run than the one that {folder} holds; resume it into its own folder, or a "
            "new one."
        )
    if resumed and changed and (folder / RESULT_FILE).exists() and _missing(folder) is None:
        raise ValueError(f"{folder} holds a finished run; continue with other data or settings in another folder.")
    if not resumed and held != identity:
        check_new_run(folder)
    if _identity(folder) != identity:
        write_text(folder / RUN_FILE, json.dumps({"run": identity}) + "\n")


def _identity(folder: Path) -> str | None:
    try:
        found: str | None = json.loads((folder / RUN_FILE).read_text())["run"]
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, one of an older version, or torn: then the results decide


def _missing(folder: Path) -> str | None:
    """What the run in the folder lacks; ``None`` if it is finished."""
    if not (folder / RESULT_FILE).exists():
        return "it has no results yet"
    try:
        return unfinished_run(RunResults.from_file(folder))
    except ValueError as error:
        return str(error)
