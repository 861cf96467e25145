"""What users pass as safety data: batches, or records and files with the refusals in them; checked before a fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor

from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.protocols import CollatedData, Collator
from hpa_lightning.data.readers import as_records
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.members import conforming
from hpa_lightning.trainer_attributes import datamodule_of
from hpa_lightning.values import nearest

S = TypeVar("S")

_EXPECTED = (
    "expected batches that training_step takes (harmful inputs answered with refusals: a loader or a list), or a path, "
    "a RecordSet or Records whose answers are the refusals"
)


_LONGEST = 600  # characters; torch puts whole models into its messages


@contextmanager
def naming_data(caller: str, data: str) -> Iterator[None]:
    """Say with which data a callback could not calibrate. Running out of memory is passed on as it is.

    Raises:
        ValueError, RuntimeError: instead of what was raised; the former for a ``ValueError``.
    """
    try:
        yield
    except MisconfigurationException:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or is_oom_error(error) or data in str(error):
            raise
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        said = f"{type(error).__name__}: {error}"
        if len(said) > _LONGEST:
            said = f"{said[: _LONGEST // 2]} ... {said[-_LONGEST // 2 :]}"
        raise kind(f"{caller} could not calibrate with {data}: {said}") from error


def settings_of(kind: type[S], given: S | Mapping[str, Any] | None, argument: str) -> S:
    """Settings as they are, from a dict of their fields, or the defaults.

    Raises:
        ValueError: anything else, an unknown field, or a value that the settings refuse.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise ValueError(f"{argument} is {given!r}; expected {kind.__name__}, or a dict of {known}.")
    unknown = sorted(set(map(str, given)) - set(known))
    if unknown:
        near = nearest(unknown[0], known)
        raise ValueError(f"{argument} has {unknown}, which {kind.__name__} does not; expected {known}{near}")
    return kind(**given)


def check_not_one_batch(data: Any, argument: str, caller: str) -> None:
    """Refuse a batch given instead of batches: going over it gives its keys, or its samples.

    Raises:
        ValueError: a mapping or a tensor.
    """
    if isinstance(data, Mapping | Tensor):
        parts = f"of {list(map(str, data))[:6]}" if isinstance(data, Mapping) else f"of shape {tuple(data.shape)}"
        raise ValueError(
            f"{caller}: {argument} is one batch (a {type(data).__name__} {parts}); expected batches: put it in a list, "
            f"{argument}=[batch]."
        )


def check_safety_data(data: Any, caller: str) -> None:
    """Refuse what can be seen at once to be no safety data.

    Raises:
        ValueError: text, one batch, an empty sequence, something that cannot be iterated.
    """
    check_not_one_batch(data, "safety_data", caller)
    if isinstance(data, str | Path):
        if not Path(data).exists():
            raise ValueError(f"{caller}: safety_data is {str(data)!r}, and there is no such file; {_EXPECTED}.")
        return
    if isinstance(data, RecordSet):
        return
    if not isinstance(data, Iterable):
        raise ValueError(f"{caller}: safety_data is a {type(data).__name__}; {_EXPECTED}.")
    if isinstance(data, Sequence) and not data:
        raise ValueError(f"{caller}: safety_data is empty; {_EXPECTED}.")
    first = data[0] if isinstance(data, Sequence) else None
    if isinstance(first, str):
        raise ValueError(f"{caller}: safety_data holds text ({first[:40]!r}, ...); {_EXPECTED}.")
    if isinstance(first, Mapping) and {"conversations", "messages"} & first.keys():
        raise ValueError(
            f"{caller}: safety_data holds rows of a data file (with {sorted(map(str, first))}); pass its path, or "
            "records that hpa_lightning.data.read_records made of it."
        )


def safety_records(data: Any) -> Sequence[Record] | None:
    """The records behind a path, a set or a sequence of records, each with its refusal; ``None`` for batches.

    Raises:
        ValueError: a record has no answer.
    """
    is_records = isinstance(data, Sequence) and len(data) > 0 and isinstance(data[0], Record)
    return as_records(data, None, "safety_data") if is_records or isinstance(data, str | Path | RecordSet) else None


def collator_of(trainer: L.Trainer, pl_module: L.LightningModule, caller: str) -> Collator:
    """What makes batches of records: the datamodule's collator, or one from the LightningModule's processor.

    Raises:
        MisconfigurationException: there is neither.
    """
    data: CollatedData | None = conforming(datamodule_of(trainer), CollatedData)
    if data is not None and (collator := data.collator) is not None:
        return collator
    processor = getattr(pl_module, "processor", None)
    if processor is None:
        raise MisconfigurationException(
            f"{caller}: safety_data are records, and neither the datamodule has a collator nor "
            f"{type(pl_module).__name__} a processor to make batches of them with; pass batches."
        )
    return MLLMCollator(processor)


def repeatable(data: Iterable[Any], batches: int | None = None) -> Iterable[Any]:
    """The data themselves, or what is left of a one-shot iterator as a list: a second task needs them again.

    Args:
        data: loader, list or iterator.
        batches: how many of an iterator are kept; all when ``None``.
    """
    if not isinstance(data, Iterator):
        return data
    if batches is None:
        return list(data)
    return [batch for _, batch in zip(range(batches), data, strict=False)]
