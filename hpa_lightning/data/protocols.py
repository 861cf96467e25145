"""What callbacks, schedules and loops ask a datamodule for, each need by itself; ``CVITDataModule`` has all of it.

A datamodule of your own has the members of those protocols that its callbacks need; it need not inherit from them. What
is missing is reported before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet


class NamedTask(Protocol):
    """A task of a stream; ``Task`` is one."""

    @property
    def name(self) -> str:
        """Unique in the stream."""


class Span(Protocol):
    """The trainer's epochs of one task; ``TaskSpan`` is one."""

    @property
    def index(self) -> int:
        """0-based place of the task in the stream."""

    @property
    def task(self) -> NamedTask:
        """The task itself."""

    @property
    def first_epoch(self) -> int:
        """0-based."""

    @property
    def last_epoch(self) -> int:
        """0-based, inclusive."""


class TaskStream(Protocol):
    """Tasks in sequence inside one fit: which task an epoch of the trainer belongs to."""

    @property
    def tasks(self) -> Sequence[NamedTask]:
        """In stream order."""

    @property
    def total_epochs(self) -> int:
        """Epochs of the trainer that all tasks take together."""

    def task_at_epoch(self, epoch: int, /) -> Span:
        """Return the task that a 0-based epoch of the trainer belongs to."""


class CountedStream(TaskStream, Protocol):
    """A stream that knows how long its tasks are: for schedules counted in optimizer steps."""

    def task_steps(self, index: int, /) -> int:
        """Return the optimizer steps of a task."""


class CalibrationStream(TaskStream, Protocol):
    """A stream with calibration data: for methods that look at the tasks' inputs."""

    def calibration_dataloader(self, task_index: int, size: int, /) -> Iterable[Any]:
        """Return batches of ``size`` records of a task for ``training_step``, apart from its test data."""


class ListedSets(Protocol):
    """Sets to answer: for ``predict``."""

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        """Return the tasks' test sets in stream order, then the safety sets, then over-refusal."""


class EvaluationData(ListedSets, Protocol):
    """Sets to score: for ``TaskEvaluation`` and ``SafetyGate``."""

    @property
    def tasks(self) -> Sequence[NamedTask]:
        """In stream order."""

    def evaluation_dataloader(self, evaluation_set: EvaluationSet, /) -> Iterable[dict[str, Any]]:
        """Return a set's ``generate`` batches in its order, as ``MLLMCollator.generate`` makes them."""


class ValidationData(EvaluationData, Protocol):
    """Sets to score in Lightning's validation loop."""

    def validation_sets(self) -> Sequence[EvaluationSet]:
        """Return the sets behind ``val_dataloader``, in its order."""


class Collator(Protocol):
    """What makes batches of records; ``MLLMCollator`` is one."""

    def train(self, records: Sequence[Record], /) -> dict[str, Tensor]:
        """Return what ``training_step`` takes."""

    def generate(self, records: Sequence[Record], /) -> dict[str, Any]:
        """Return a ``generate`` batch."""


class OpeningCollator(Collator, Protocol):
    """A collator that knows how replies begin: for a second judge by the likelihood of a refusal."""

    def beginnings(self, records: Sequence[Record], replies: Sequence[str], /) -> list[list[list[int]]]:
        """Return for each record, for each reply the tokens that follow the prompt of ``generate``."""


class CollatedData(Protocol):
    """Data that bring their collator along."""

    @property
    def collator(self) -> Collator:
        """Makes the batches."""


class ChoiceData(EvaluationData, CollatedData, Protocol):
    """Sets of multiple choice among those to score: their loaders have ``dataset``, a sequence of records."""

    @property
    def eval_batch_size(self) -> int:
        """Choices in one forward pass."""


class HarmfulData(Protocol):
    """Harmful inputs, which the aligned model answers: for the safety calibration."""

    def harmful_calibration_records(self) -> Sequence[Record]:
        """Return harmful inputs without answers, apart from every safety test set."""


class PromptData(CalibrationStream, HarmfulData, Protocol):
    """Harmless and harmful prompts: for what compares hidden states."""


class RefusedData(Protocol):
    """Harmful inputs whose refusals are given."""

    def refused_calibration_records(self) -> Sequence[Record] | None:
        """Return them, each with its refusal; ``None`` if the model is to answer them itself."""


class Provenance(Protocol):
    """Data that say for the result file where they are from."""

    def provenance(self) -> dict[str, Any]:
        """Return plain values."""


class FingerprintedData(Protocol):
    """Data whose content can be compared between processes."""

    def fingerprint(self) -> dict[str, Any]:
        """Return settings and digests."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what must be the same on a resume."""
