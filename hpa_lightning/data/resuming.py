"""What must be the same when a fit continues: settings in words, and what is done about differences."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence, Set, Sized
from enum import Enum
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.digests import array_digest, file_digest, records_digest, same_records
from hpa_lightning.data.record import Record
from hpa_lightning.values import shown

_ABSENT = "nothing"
_HOW = frozenset({"batch_size", "device"})
"""Attributes of judges that say how something is computed, not what."""


def described(value: Any) -> Any:
    """A setting in numbers, strings, lists and dictionaries of them, as a checkpoint can hold it.

    A string or path that names a file counts by the file's content, tensors by theirs. Of an object that cannot be
    looked into (a loader, a function) the class and the length are reported.

    >>> described((1, 0.5)), described(Exception)
    ([1, 0.5], 'Exception')
    """
    if isinstance(value, Enum):
        return described(value.value)
    if isinstance(value, str | os.PathLike):
        return file_digest(value) if value and os.path.isfile(value) else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # bfloat16 has no NumPy type
        return f"{value.dtype} {tuple(value.shape)}, {array_digest(raw)}"
    if isinstance(value, np.ndarray):
        return array_digest(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
        return {"class": type(value).__name__, **named}
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted(map(str, value))
    if isinstance(value, partial):
        return {"class": described(value.func), "arguments": described(value.args), **described(value.keywords)}
    if isinstance(value, list | tuple) and value and all(isinstance(item, Record) for item in value):
        return records_digest(value)
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if (
        callable(value)
        and not isinstance(value, type)
        and hasattr(value, "__dict__")
        and not hasattr(value, "__name__")
    ):
        own = {key: item for key, item in vars(value).items() if not key.startswith("_") and key not in _HOW}
        return {"class": type(value).__name__, **{key: described(item) for key, item in own.items()}}
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Sized) else type(value).__name__


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the dotted name of every entry that differs -> (before, now); an entry that one side lacks differs.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": 4})
    {'a.b': (1, 3), 'd': ('nothing', 4)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*before, *(key for key in now if key not in before)]:
        name = f"{path}{key}"
        one, other = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differences(one, other, f"{name}.")
        elif one != other and not (isinstance(one, str) and isinstance(other, str) and same_records(one, other)):
            found[name] = (one, other)
    return found


def refuse_changes(trainer: L.Trainer | None, changed: Mapping[str, tuple[Any, Any]], what: str) -> None:
    """Refuse to continue from a checkpoint that was made with something else, unless the trainer has ``AllowChanges``.

    Args:
        trainer: whose callbacks may allow it.
        changed: what :func:`differences` returned.
        what: what the checkpoint belongs to, for the message.

    Raises:
        ValueError: a change that is not allowed, with both sides of every one.
    """
    if not changed:
        return
    allows: Sequence[Callable[[str], bool]] = [
        callback.allows_change for callback in getattr(trainer, "callbacks", ()) if hasattr(callback, "allows_change")
    ]
    refused = {name: sides for name, sides in changed.items() if not any(allow(name) for allow in allows)}
    if refused:
        raise ValueError(
            f"the checkpoint belongs to another {what} ({_listed(refused)}). Resume with what the fit was started "
            "with, or add the callback hpa_lightning.callbacks.AllowChanges (on the command line "
            "--trainer.callbacks+=hpa_lightning.callbacks.AllowChanges) to continue with these differences."
        )
    rank_zero_warn(f"AllowChanges: the fit continues with another {what} ({_listed(changed)}).")


def _listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{name}: {_text(one)} in the checkpoint, {_text(other)} now" for name, (one, other) in changed.items()
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
