"""What a stream is made of: tasks, evaluation sets, harmful injection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpa_lightning.data.records import Record

Data = str | Sequence[Record]

KINDS = ("task", "safety", "over_refusal")
_DEFAULT_METRICS = {"task": "exact_match", "safety": "attack_success_rate", "over_refusal": "over_refusal_rate"}


@dataclass
class Task:
    """One task of the stream.

    Args:
        name: unique in the stream.
        train: path to JSON or JSON lines, or records that end with an answer.
        test: path or records with reference answers.
        calibration: path or records for the task's Hessian; drawn from the training data when ``None``.
        image_folder: folder that relative image paths start from; each file's own folder when ``None``.
        epochs: passes over the training data; 1 if neither ``epochs`` nor ``steps`` is given.
        steps: optimizer steps in place of epochs; the data are reshuffled for every pass that this needs.
        metric: name of the metric of the test set.
        max_new_tokens: longest answer in evaluation.
    """

    name: str
    train: Data
    test: Data
    calibration: Data | None = None
    image_folder: str | None = None
    epochs: int | None = None
    steps: int | None = None
    metric: str = "exact_match"
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"task {self.name!r} has epochs={self.epochs} and steps={self.steps}; expected one of them."
            )
        for what in ("epochs", "steps"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"task {self.name!r} has {what}={value}; expected at least 1.")
        _check_name(self.name, "task")

    @property
    def lightning_epochs(self) -> int:
        """Epochs of the trainer that the task takes; a task that is measured in steps takes one."""
        return 1 if self.steps is not None else self.epochs or 1


@dataclass(frozen=True)
class TaskSpan:
    """The trainer's epochs of one task, ``last_epoch`` included; ``index`` is 0-based."""

    index: int
    task: Task
    first_epoch: int
    last_epoch: int


@dataclass
class EvaluationSet:
    """A set to answer and to score.

    Args:
        name: unique among all evaluation sets, the tasks' names included.
        kind: ``"task"``, ``"safety"`` (harmful inputs) or ``"over_refusal"`` (harmless ones that look harmful).
        data: path or records.
        metric: name of a metric; by default exact match, attack success rate or over-refusal rate, as the kind asks.
        max_new_tokens: longest answer.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
    """

    name: str
    kind: str
    data: Data
    metric: str | None = None
    max_new_tokens: int = 64
    image_folder: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"evaluation set {self.name!r} is of kind {self.kind!r}; expected one of {KINDS}.")
        if self.metric is None:
            self.metric = _DEFAULT_METRICS[self.kind]
        _check_name(self.name, "evaluation set")


@dataclass
class HarmfulInjection:
    """Harmful samples mixed into every task's training data (the paper's second data condition: 0.1 %).

    Decision: the samples are added to the task's own, ``max(1, floor(ratio * n + 0.5))`` of them for a task of ``n``
    records, drawn by seed and task name without replacement.

    Args:
        data: path or records of harmful inputs answered harmfully.
        ratio: fraction of the task's training data, for example 0.001.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
    """

    data: Data
    ratio: float = 0.001
    image_folder: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"the harmful-injection ratio is {self.ratio}; expected a fraction in [0, 1].")

    def count(self, size: int) -> int:
        """Return how many samples are added to ``size`` records."""
        return 0 if self.ratio == 0 else max(1, int(self.ratio * size + 0.5))


def _check_name(name: str, what: str) -> None:
    if not name or any(character in name for character in "/\\\n") or name.strip() != name:
        raise ValueError(f"{what} name {name!r}; expected a name without slashes and outer blanks, for files and logs.")
