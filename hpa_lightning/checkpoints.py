"""Checkpoint files: which are whole, and which is the newest of them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

_FOLDER_PARTS = (".metadata", "meta.pt")
"""What Lightning writes last into the folder of a sharded checkpoint."""


def checkpoint_fault(path: Path) -> str | None:
    """Say in a few words why a fit cannot continue from a checkpoint; ``None`` if it can.

    A file is torn if it is cut off or a part of it does not fit its checksum; all of it is read for that (about a
    second for a gigabyte). A checkpoint that was saved on an error while weights were written is whole, and of no use.
    """
    if path.is_dir():
        missing = [name for name in _FOLDER_PARTS if not (path / name).is_file()]
        return f"it lacks {' and '.join(missing)}" if missing else None
    try:
        with zipfile.ZipFile(path) as file:
            if (part := file.testzip()) is not None:
                return f"its part {part} is damaged"
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"it is cut off or no checkpoint ({error})"
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):  # holds objects of user-defined classes, which Lightning may load
        return None
    if (wrong := _wrong_part(checkpoint)) is not None:
        return f"it is no checkpoint of Lightning's ({wrong})"
    for name, state in (checkpoint.get("callbacks") or {}).items():
        if isinstance(state, dict) and state.get("torn"):
            return f"it was saved on an error while {name} was {state['torn']}"
    return None


def _wrong_part(checkpoint: object) -> str | None:
    """What is missing or of another kind in something that torch has loaded."""
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__}"
    for name in ("state_dict", "pytorch-lightning_version"):
        if name not in checkpoint:
            return f"it holds no `{name}`"
    named = ("state_dict", "callbacks", "hyper_parameters")
    wrong = [name for name in named if not isinstance(checkpoint.get(name) or {}, dict)]
    return f"its `{wrong[0]}` is a {type(checkpoint[wrong[0]]).__name__}" if wrong else None


def newest_checkpoint(folders: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint anywhere in the folders that a fit can continue from.

    Returns:
        The checkpoint, ``None`` if there is none, and what is said of newer ones that are torn, each by name.
    """
    found = {path for folder in folders if folder.is_dir() for path in folder.rglob("*.ckpt")}
    torn: list[str] = []
    for path in sorted(found, key=lambda path: path.lstat().st_mtime, reverse=True):
        if not path.exists():  # a link whose file is gone
            continue
        if (fault := checkpoint_fault(path)) is None:
            return path, torn
        torn.append(f"{path} is left out: {fault}")
    return None, torn
