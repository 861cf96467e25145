"""What is asked of the trainer's datamodule: each need is met, or told before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.protocols import (
    CalibrationStream,
    ChoiceData,
    CountedStream,
    EvaluationData,
    FingerprintedData,
    HarmfulData,
    ListedSets,
    OpeningCollator,
    PromptData,
    Provenance,
    RefusedData,
    Span,
    TaskStream,
    ValidationData,
)
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.members import conforming, missing_members, require_members
from hpa_lightning.trainer_attributes import datamodule_of
from hpa_lightning.values import shown

_INSTEAD = "Add it (hpa_lightning.data.protocols says what it gives), or fit with a CVITDataModule."
_NO_OPENINGS = (
    "Add it (hpa_lightning.data.protocols says what it gives), use MLLMCollator, or leave the sets' openings out."
)


def task_stream(trainer: L.Trainer) -> TaskStream | None:
    """Return the trainer's datamodule if it streams tasks (has ``task_at_epoch``), else ``None``."""
    found: Any = datamodule_of(trainer)
    stream: TaskStream | None = found if hasattr(found, "task_at_epoch") else None
    return stream


def counted_stream(stream: TaskStream) -> CountedStream | None:
    """Return the stream if it knows the steps of its tasks, else ``None``."""
    counted: CountedStream | None = conforming(stream, CountedStream)
    return counted


def calibration_stream(trainer: L.Trainer, caller: str) -> CalibrationStream | None:
    """Return the datamodule that gives calibration batches of each task; ``None`` without a stream.

    Raises:
        MisconfigurationException: a stream without them.
    """
    if (found := task_stream(trainer)) is None:
        return None
    instead = f"Pass task_data=. {_INSTEAD}"
    stream: CalibrationStream = require_members(found, CalibrationStream, f"{caller} asks the stream for", instead)
    return stream


def evaluation_data(trainer: L.Trainer, caller: str) -> EvaluationData:
    """Return the datamodule that gives sets to score.

    Raises:
        MisconfigurationException: it does not.
    """
    found, asks = datamodule_of(trainer), f"{caller} asks the datamodule for"
    data: EvaluationData = require_members(found, EvaluationData, asks, _INSTEAD)
    return data


def validation_data(trainer: L.Trainer, caller: str) -> ValidationData:
    """Return the datamodule that gives sets to score in Lightning's validation loop.

    Raises:
        MisconfigurationException: it does not.
    """
    found, asks = datamodule_of(trainer), f"{caller} asks the datamodule for"
    data: ValidationData = require_members(found, ValidationData, asks, _INSTEAD)
    return data


def choice_data(data: EvaluationData, caller: str) -> ChoiceData:
    """Return data that can be scored by the likelihoods of choices.

    Raises:
        MisconfigurationException: they lack what that needs.
    """
    asks = f"{caller} scores multiple choice and asks the datamodule for"
    choices: ChoiceData = require_members(data, ChoiceData, asks, _INSTEAD)
    return choices


def opening_collator(data: EvaluationData, caller: str) -> OpeningCollator:
    """Return the collator of data that can be scored by the likelihoods of openings.

    Raises:
        MisconfigurationException: they lack what that needs.
    """
    asks = f"{caller} has openings and asks the datamodule's collator for"
    found: OpeningCollator = require_members(choice_data(data, caller).collator, OpeningCollator, asks, _NO_OPENINGS)
    return found


def predicted_sets(datamodule: object) -> list[EvaluationSet]:
    """The evaluation sets that ``predict`` answers, one for each of its loaders; none where it has other data."""
    listed: ListedSets | None = conforming(datamodule, ListedSets)
    return [] if listed is None or has_own_predict_data(datamodule) else list(listed.evaluation_sets())


def has_own_predict_data(datamodule: object) -> bool:
    """Whether ``predict`` answers records of its own instead of the evaluation sets."""
    return getattr(datamodule, "predict_data", None) is not None


def harmful_data(trainer: L.Trainer, caller: str) -> HarmfulData:
    """Return the datamodule that gives harmful inputs.

    Raises:
        MisconfigurationException: it does not.
    """
    asks = (
        f"{caller} needs safety calibration data: pass safety_data= (batches of harmful inputs answered with refusals)."
        " Without it, it asks the datamodule for"
    )
    data: HarmfulData = require_members(datamodule_of(trainer), HarmfulData, asks, _INSTEAD)
    return data


def prompt_data(trainer: L.Trainer, asks: str, instead: str) -> PromptData:
    """Return the datamodule that gives harmless and harmful prompts.

    Raises:
        MisconfigurationException: it does not; ``asks`` and ``instead`` as in :func:`require_members`.
    """
    data: PromptData = require_members(datamodule_of(trainer), PromptData, asks, instead)
    return data


def refused_records(data: object) -> Sequence[Record] | None:
    """Return the harmful inputs whose refusals are given; ``None`` where the model is to answer."""
    given: RefusedData | None = conforming(data, RefusedData)
    return None if given is None else given.refused_calibration_records()


def provenance_of(data: object) -> dict[str, Any]:
    """Return what the data say of where they are from; nothing of data that say nothing."""
    known: Provenance | None = conforming(data, Provenance)
    return {} if known is None else known.provenance()


def fingerprint_of(trainer: L.Trainer) -> Mapping[str, Any]:
    """Return what must be the same on all processes of a stream that can give it."""
    known: FingerprintedData | None = conforming(task_stream(trainer), FingerprintedData)
    return {} if known is None else known.state_dict()


def records_of(loader: object) -> Sequence[Record] | None:
    """Return the records behind a loader, in its order; ``None`` where its ``dataset`` is no sequence."""
    dataset: Any = getattr(loader, "dataset", None)
    records: Sequence[Record] | None = dataset if hasattr(dataset, "__len__") else None
    return records


def check_stream(trainer: L.Trainer, caller: str) -> None:
    """Check, before a fit, that a datamodule streams its tasks as callbacks expect it, or does not stream at all.

    Raises:
        MisconfigurationException: members that are missing, or spans that do not cover the epochs task by task.
    """
    found: Any = datamodule_of(trainer)
    if not hasattr(found, "task_at_epoch"):
        others = [name for name in ("tasks", "total_epochs") if name not in missing_members(found, TaskStream)]
        if len(others) == 2:
            rank_zero_warn(
                f"{caller}: {type(found).__name__} has tasks and total_epochs, but no task_at_epoch(epoch), so that "
                "the whole fit counts as one task. Add it if the tasks are trained in sequence."
            )
        return
    require_members(found, TaskStream, f"{caller} asks the stream of tasks for", _INSTEAD)
    stream: TaskStream = found
    kind, epoch, total, count = type(found).__name__, 0, stream.total_epochs, len(stream.tasks)
    for index in range(count):
        span = stream.task_at_epoch(epoch)
        if lacking := missing_members(span, Span):
            raise MisconfigurationException(
                f"{caller}: {kind}.task_at_epoch({epoch}) is {shown(span)} without {lacking}; expected index, task, "
                "first_epoch and last_epoch (hpa_lightning.data.TaskSpan)."
            )
        if span.index != index or span.first_epoch != epoch or not epoch <= span.last_epoch < total:
            raise MisconfigurationException(
                f"{caller}: {kind}.task_at_epoch({epoch}) is task {span.index}, epochs {span.first_epoch} to "
                f"{span.last_epoch}; expected task {index} from epoch {epoch} on, of {count} tasks in {total} epochs, "
                "each after the one before."
            )
        epoch = span.last_epoch + 1
    if epoch != total:
        raise MisconfigurationException(
            f"{caller}: the {count} tasks of {kind} take {epoch} epochs, and its total_epochs is {total}; expected the "
            "same number."
        )
