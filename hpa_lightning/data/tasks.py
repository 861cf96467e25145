"""What a stream is made of: tasks, evaluation sets, harmful injection, replay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torchmetrics import Metric

from hpa_lightning.data.readers.turns import ImagePlace, check_image_place
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.reply_openings import ReplyOpenings
from hpa_lightning.metrics.judges import RefusalJudge
from hpa_lightning.metrics.scoring import check_scorable, metric_of

#: A file, a published set, or records in memory. `Path` does more here than to be accepted: a type that names a class
#: and no path lets jsonargparse open a data file as if it were a configuration.
Data = str | Path | RecordSet | Sequence[Record]


def source_of(data: Data) -> str:
    """What the data are, in words: a path, a published set with its settings, or how many records in memory.

    >>> source_of("harmful.json"), source_of([])
    ('harmful.json', '0 records in memory')
    """
    if isinstance(data, str | Path):
        return str(data)
    return repr(data) if isinstance(data, RecordSet) else f"{len(data)} records in memory"


Objective = Literal["answer", "preference"]

KINDS = ("task", "safety", "over_refusal", "helpfulness")
_DEFAULT_METRICS = {
    "task": "exact_match",
    "safety": "attack_success_rate",
    "over_refusal": "over_refusal_rate",
    "helpfulness": "option_accuracy",
}
# Lower is better, as the means over the sets (MASR, over-refusal) need it.
_RATES = {"safety": ("attack_success_rate", "unsafe_choice_rate"), "over_refusal": ("over_refusal_rate",)}


@dataclass
class Task:
    """One task of the stream.

    Args:
        name: unique in the stream.
        train: path to JSON or JSON lines, or records that end with an answer.
        test: path or records with reference answers; ``None``: nothing of the task is scored, it has no column in the
            matrix and no part in AP and BWT, as a step of safety tuning behind the tasks.
        calibration: path or records for the task's Hessian; drawn from the training data when ``None``.
        image_folder: folder that relative image paths start from; each file's own folder when ``None``.
        epochs: passes over the training data; 1 if neither ``epochs`` nor ``steps`` is given.
        steps: optimizer steps instead of epochs; the data are reshuffled for every pass that this needs.
        metric: name of the metric of the test set.
        max_new_tokens: longest answer in evaluation; when ``None`` that of the module's ``generation``, or 16.
        image_place: where in its turn an image of a mark ``<image>`` in a file is, see :func:`read_records`; the
            datamodule's when ``None``.
        objective: ``"answer"``: the answers are learnt. ``"preference"``: every training record is a pair (has
            ``rejected``), and the module is a :class:`~hpa_lightning.modules.PreferenceModule`. Hessians are calibrated
            on the chosen answers.
    """

    name: str
    train: Data
    test: Data | None = None
    calibration: Data | None = None
    image_folder: str | None = None
    epochs: int | None = None
    steps: int | None = None
    metric: str = "exact_match"
    max_new_tokens: int | None = None
    image_place: ImagePlace | None = None
    objective: Objective = "answer"

    def __post_init__(self) -> None:
        _check_place(self.image_place)
        if self.objective not in get_args(Objective):
            raise ValueError(
                f"task {self.name!r} has the objective {self.objective!r}; expected one of "
                f"{', '.join(get_args(Objective))}."
            )
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"task {self.name!r} has epochs={self.epochs} and steps={self.steps}; expected one of them."
            )
        for what in ("epochs", "steps", "max_new_tokens"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"task {self.name!r} has {what}={value}; expected at least 1.")
        _check_name(self.name, "task")
        metric_of(self)  # an unknown metric is reported before anything is trained

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
        kind: ``"task"``, ``"safety"`` (harmful inputs), ``"over_refusal"`` (harmless ones that look harmful) or
            ``"helpfulness"`` (what the model is able to do beside the tasks, such as MMBench).
        data: path, records, or a published set (:class:`RecordSet`).
        metric: name of a metric; by default exact match, attack success rate, over-refusal rate or option
            accuracy, as the kind asks.
        max_new_tokens: longest answer; when ``None`` that of the module's ``generation``, or 64 (of a task and of
            helpfulness: 16).
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        judge: of a safety or over-refusal set: the name of string rules, a file of rules, or a judge such as
            :class:`GuardModelJudge`; the default judge (`refusal-v2`) when ``None``.
        image_place: where in its turn an image of a mark ``<image>`` in a file is, see :func:`read_records`; the
            datamodule's when ``None``.
        openings: of a safety or over-refusal set that is answered: how refusals begin. The mean probability that a
            reply begins so is the figure ``by_likelihood`` of over-refusal beside the score, and one less it that of a
            safety set; the score itself stays the judge's.

    Raises:
        ValueError: an unknown kind, metric or judge, a metric that is not of the kind, a name that is no file name,
            openings of a set that is not answered or of another kind.
    """

    name: str
    kind: str
    data: Data
    metric: str | None = None
    max_new_tokens: int | None = None
    image_folder: str | None = None
    judge: str | Path | RefusalJudge | None = None
    image_place: ImagePlace | None = None
    openings: ReplyOpenings | None = None

    def __post_init__(self) -> None:
        _check_place(self.image_place)
        if self.kind not in KINDS:
            raise ValueError(f"evaluation set {self.name!r} is of kind {self.kind!r}; expected one of {KINDS}.")
        if self.judge is not None and self.kind not in _RATES:
            raise ValueError(
                f"evaluation set {self.name!r} is of kind {self.kind!r}, which no judge scores; leave judge out."
            )
        if self.metric is None:
            self.metric = _DEFAULT_METRICS[self.kind]
        _check_name(self.name, "evaluation set")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"evaluation set {self.name!r} has max_new_tokens={self.max_new_tokens}; expected >= 1.")
        rates = _RATES.get(self.kind, (self.metric,))
        if self.metric not in rates:
            raise ValueError(
                f"evaluation set {self.name!r} of kind {self.kind!r} has the metric {self.metric!r}; expected "
                f"{' or '.join(map(repr, rates))}."
            )
        metric_of(self)
        if self.openings is not None and self.metric not in ("attack_success_rate", "over_refusal_rate"):
            raise ValueError(
                f"evaluation set {self.name!r} is scored by {self.metric!r}, which no likelihood of a refusal "
                "complements; leave openings out."
            )


def check_evaluable(record: Record, metric: Metric) -> None:
    """Check that the metric can score the record: its references or choices are of the right form.

    Raises:
        ValueError: named by the record.
    """
    try:
        check_scorable(metric, record.prompt_and_references()[1], record.choices)
    except ValueError as error:
        raise ValueError(f"{record.where}: {type(metric).__name__} cannot score it: {error}") from error


@dataclass
class HarmfulInjection:
    """Harmful samples mixed into every task's training data (the paper's second data condition: 0.1 %).

    Decision: the samples are added to the task's own, ``max(1, floor(ratio * n + 0.5))`` of them for a task of ``n``
    records, drawn by seed and task name without replacement.

    Args:
        data: path or records of harmful inputs answered harmfully.
        ratio: fraction of the task's training data, for example 0.001.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        image_place: where in its turn an image of a mark ``<image>`` in a file is, see :func:`read_records`; the
            datamodule's when ``None``.
    """

    data: Data
    ratio: float = 0.001
    image_folder: str | None = None
    image_place: ImagePlace | None = None

    def __post_init__(self) -> None:
        _check_place(self.image_place)
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"the harmful-injection ratio is {self.ratio}; expected a fraction in [0, 1].")

    def count(self, size: int) -> int:
        """Return how many samples are added to ``size`` records."""
        return 0 if self.ratio == 0 else max(1, int(self.ratio * size + 0.5))


@dataclass
class Replay:
    """Experience replay: records of earlier tasks mixed into the training data of the later ones.

    An upper reference: it stores data, which most methods of continual tuning are meant to do without.

    Decision: of each task ``samples_per_task`` records are remembered (all, if it has fewer), drawn by seed and task
    name without replacement from what the task trained on, harmful injected samples included, since nobody can tell
    them apart. The remembered records of all earlier tasks, the tasks in turn, are added to a task's own and drawn into
    batches like these: a task in epochs gets longer by them, a task in steps keeps its steps and sees that much less of
    its own data. Calibration data stay the task's own.

    Args:
        samples_per_task: records remembered of each task, at least 1.
        share: fraction of a task's training samples that are replayed, in (0, 1). What is remembered is repeated, or
            cut, to reach it: ``floor(share * N + 0.5)`` (at least 1) of ``N`` samples in all. ``None``: every
            remembered record once.
    """

    samples_per_task: int
    share: float | None = None

    def __post_init__(self) -> None:
        if self.samples_per_task < 1:
            raise ValueError(
                f"replay.samples_per_task is {self.samples_per_task}; expected at least 1, or replay=None for none."
            )
        check_share(self.share, "replay.share")


@dataclass
class SafetyReplay:
    """A small safety set mixed into every task's training data: harmful inputs answered with refusals.

    An upper reference: it needs safety data with answers, which the setting of this package assumes to be gone.

    Decision: ``samples`` records are drawn once, by seed without replacement, and every task gets the same ones; they
    are mixed in like those of :class:`Replay`.

    Args:
        data: path or records of harmful inputs answered with refusals; kept apart from the safety test sets.
        samples: records used; all of them when ``None``.
        share: fraction of a task's training samples that are of this set, see :class:`Replay`; ``None``: each once.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        image_place: where in its turn an image of a mark ``<image>`` in a file is, see :func:`read_records`; the
            datamodule's when ``None``.
    """

    data: Data
    samples: int | None = None
    share: float | None = None
    image_folder: str | None = None
    image_place: ImagePlace | None = None

    def __post_init__(self) -> None:
        _check_place(self.image_place)
        if self.samples is not None and self.samples < 1:
            raise ValueError(
                f"safety_replay.samples is {self.samples}; expected at least 1, or safety_replay=None for none."
            )
        check_share(self.share, "safety_replay.share")


def replay_counts(own: int, memories: Sequence[tuple[int, float | None]]) -> list[int]:
    """Return how many samples each memory adds to ``own`` records.

    With ``N`` samples in all, a memory with a share adds ``share * N``, rounded, and one without adds its size; so
    ``N = (own + sizes without a share) / (1 - sum of shares)``. An empty memory adds nothing.

    Args:
        own: number of the task's own records.
        memories: size and share of each memory.

    >>> replay_counts(80, [(8, 0.2)]), replay_counts(80, [(8, None), (0, 0.5)]), replay_counts(60, [(4, 0.3), (9, 0.1)])
    ([20], [8, 0], [30, 10])
    """
    fixed = own + sum(size for size, share in memories if share is None)
    total = fixed / (1.0 - sum(share for size, share in memories if share is not None and size > 0))
    return [size if share is None or size == 0 else max(1, int(share * total + 0.5)) for size, share in memories]


def check_share(share: float | None, what: str) -> None:
    """Check that a share is a fraction between 0 and 1, or none."""
    if share is not None and not 0.0 < share < 1.0:
        raise ValueError(f"{what} is {share}; expected a fraction between 0 and 1, or None for each record once.")


def _check_place(place: ImagePlace | None) -> None:
    if place is not None:
        check_image_place(place)


def _check_name(name: str, what: str) -> None:
    if re.search(r"^\.{0,2}$|[/\\\x00-\x1f]", name) or name.strip() != name:
        raise ValueError(f"{what} name {name!r}; expected a name without slashes and outer blanks, for files and logs.")
