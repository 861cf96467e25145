"""The events of a result file: one frozen class for each kind, shared by those who write and those who read.

Scores, rates and shares are fractions in [0, 1]; steps are tasks counted from 0, -1 is the aligned model. What a field
holds is checked when a line is read. Keys that a class does not know (of another version, or of another program's
callback) are kept in ``extra``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hpa_lightning.results.event_lines import KINDS, Event, null_field
from hpa_lightning.values import shown

__all__ = [
    "KINDS",
    "CurveEvent",
    "DriftEvent",
    "DriftPromptsEvent",
    "EndEvent",
    "Event",
    "FusionEvent",
    "GateEvent",
    "ProtectionEvent",
    "ResumeEvent",
    "RetentionEvent",
    "RunEvent",
    "SafetyCalibrationEvent",
    "SafetyLayersEvent",
    "ScoreEvent",
    "TestedEvent",
    "TimeEvent",
    "WeightDriftEvent",
    "event_of",
]


@dataclass(frozen=True, kw_only=True)
class RunEvent(Event):
    """What a run is: the first line of its file.

    Args:
        method: its name.
        seed: of the run; -1: none was set.
        tasks: names, in stream order.
        sets: ``{"name", "kind"}`` of the evaluation sets; the kind is ``task``, ``safety``,
            ``over_refusal`` or ``helpfulness``.
        data: the datamodule's ``provenance()``.
        ends: whether the run writes an ``end`` event.
        versions: of packages, with the device and the precision.
        command, commit: what else it was made with.
        judge, judged_again: of results whose answers another judge has judged: that judge, and their file.
    """

    event: ClassVar[str] = "run"

    method: str | None = null_field()
    seed: int | None = None
    tasks: tuple[str, ...] = ()
    sets: tuple[Mapping[str, str], ...] = ()
    data: Mapping[str, Any] | None = None
    ends: bool | None = None
    versions: Mapping[str, Any] | None = None
    command: str | None = None
    commit: str | None = null_field()
    judge: str | None = None
    judged_again: str | None = None


@dataclass(frozen=True, kw_only=True)
class TestedEvent(RunEvent):
    """The first line of what `test` and `validate` write.

    Args:
        tested: the checkpoint; ``None``: the model as configured.
        weights: the same in words; older files lack it.
    """

    __test__ = False  # pytest takes it for a class of tests

    tested: str | None = null_field()
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeEvent(Event):
    """A checkpoint was loaded.

    Args:
        step: the task that continues.
        changes: the differences that ``AllowChanges`` allowed.
        versions, command, commit: what it continues with.
    """

    event: ClassVar[str] = "resume"

    step: int | None = null_field()
    changes: tuple[str, ...] | None = None
    versions: Mapping[str, Any] | None = None
    command: str | None = None
    commit: str | None = null_field()


@dataclass(frozen=True, kw_only=True)
class _SetScore(Event):
    """How one evaluation set was scored; of a score and of a point of a curve, behind the moment that it was scored at.

    Args:
        set, kind, metric: what was scored.
        score: null in a file where it was not finite.
        n: number of answers.
        empty, cut, no_option: answers without a character, those that the limit on new tokens ended, and those that
            name no option; ``None``: not counted.
        decoding: what decides the answers.
        judge: the judge that separated refusals from answers.
        figures: what the metric reports in addition to the score, such as ``accuracy_plus`` and ``points`` of MME.
        categories: scheme -> category -> ``{"n", "score"}`` and further figures, of a set whose records have any.
    """

    set: str
    kind: str
    metric: str
    score: float | None
    n: int | None = None
    empty: int | None = None
    cut: int | None = None
    no_option: int | None = None
    decoding: Mapping[str, Any] | None = None
    judge: str | None = None
    figures: Mapping[str, Any] | None = None
    categories: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _AfterTask(Event):
    step: int
    after: str | None = null_field()


@dataclass(frozen=True, kw_only=True)
class _WithinTask(Event):
    step: int
    task: str
    optimizer_step: int
    moment: str


@dataclass(frozen=True, kw_only=True)
class ScoreEvent(_SetScore, _AfterTask):  # a line holds the fields of the last class first
    """The score of one evaluation set.

    Args:
        step, after: the task that was learnt last and its name, ``None`` for the aligned model.
        set, kind, metric, score, n, empty, cut, no_option, decoding, judge, figures, categories: see ``_SetScore``.
    """

    event: ClassVar[str] = "score"


@dataclass(frozen=True, kw_only=True)
class CurveEvent(_SetScore, _WithinTask):
    """The score of one evaluation set while a task is trained (``SafetyCurve``).

    Args:
        step, task: which task is trained.
        optimizer_step: of the whole fit; 0: before the first one.
        moment: ``start``, ``step``, ``checkpoint`` or ``end`` (of the task, after its methods).
        set, kind, metric, score, n, empty, cut, no_option, decoding, judge, figures, categories: see ``_SetScore``.
    """

    event: ClassVar[str] = "curve"


@dataclass(frozen=True, kw_only=True)
class RetentionEvent(Event):
    """What one layer retains of one task's change.

    Args:
        step, task, layer, module: which layer of which task; layers count from 1.
        columns: input columns (with ``units="rows"`` output rows) of the layer.
        retained: how many keep their values from before the task.
        safety_focused, task_focused, shared: how many the partition found, and how many are both.
        alpha, projection_scale: the trade-off of the layer, and the scale of what was taken out of its update.
        units: ``"rows"``; ``None``: columns.
    """

    event: ClassVar[str] = "retention"

    step: int | None = null_field()
    task: str | None = null_field()
    layer: int | None = null_field()
    module: str | None = null_field()
    columns: int
    units: str | None = None
    retained: int
    safety_focused: int | None = null_field()
    task_focused: int | None = null_field()
    shared: int | None = null_field()
    alpha: float | None = null_field()
    projection_scale: float | None = null_field()


@dataclass(frozen=True, kw_only=True)
class FusionEvent(Event):
    """The share of a layer's entries that keep the tuned value (Safe Delta, Model Tailor).

    Args:
        step, task, layer, module: which layer of which task.
        kept_share: a fraction.
    """

    event: ClassVar[str] = "fusion"

    step: int | None = null_field()
    task: str | None = null_field()
    layer: int | None = null_field()
    module: str | None = null_field()
    kept_share: float | None = null_field()


@dataclass(frozen=True, kw_only=True)
class ProtectionEvent(Event):
    """What one layer's update has left of its input directions (null-space projection).

    Args:
        step, task, layer, module: which layer of which task; layers count from 1.
        columns: input columns of the layer, and so its directions.
        directions: how many the update has left; those that it is damped along count in part.
        share: the rule by which they were chosen: ``output``, ``nearest``, ``refusals`` or ``energy``.
        energy: the share of the protected inputs' energy that these hold; ``None``: not measured.
        change: the bound of what the layer's output on protected inputs changed by, a share of it; ``None``: no bound.
        budget: what was allowed of it at the task's end; ``None``: no budget.
    """

    event: ClassVar[str] = "protection"

    step: int | None = null_field()
    task: str | None = null_field()
    layer: int | None = null_field()
    module: str | None = null_field()
    columns: int
    directions: float
    share: str
    energy: float | None = None
    change: float | None = None
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class TimeEvent(Event):
    """Time spent.

    Args:
        step: of the task.
        phase: ``train``, ``prepare``, ``calibrate``, ``remember``, ``fuse``, ``evaluate``, ``drift``, ``gate``,
            ``evaluate_again``, or ``shared``: what another fit of a study measured of the aligned model was read.
        seconds: null in a file where it was not finite.
        by: the callback that took it; null in files that are older than this key.
        number: how many times of this callback, task and phase are before it, from 0; null as ``by``. A resumed run
            that takes a time once more gives it the same number.
    """

    event: ClassVar[str] = "time"

    step: int = -1
    phase: str | None = null_field()
    seconds: float | None = null_field()
    by: str | None = null_field()
    number: int | None = null_field()


@dataclass(frozen=True, kw_only=True)
class SafetyLayersEvent(Event):
    """Decoder blocks that were frozen.

    Args:
        first, last: counted from 1.
        found: whether they were found on the aligned model, not given.
        gap_degrees: the measured gap, one angle for each block.
    """

    event: ClassVar[str] = "safety_layers"

    first: int | None = null_field()
    last: int | None = null_field()
    found: bool | None = null_field()
    gap_degrees: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class DriftPromptsEvent(Event):
    """The prompts of ``LayerDrift``, and the safety layers that the model before the first task shows on them.

    Args:
        sets: name of the prompts -> how many.
        first, last: the safety layers, counted from 1; ``None``: no block separates harmful from harmless prompts, or
            the prompts of one kind are missing.
        gap_degrees: the measured gap, one angle for each block.
    """

    event: ClassVar[str] = "drift_prompts"

    sets: Mapping[str, int]
    first: int | None = null_field()
    last: int | None = null_field()
    gap_degrees: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class DriftEvent(Event):
    """How the hidden states of one set of prompts compare with those before the first task.

    Args:
        step, at: the task, and the optimizer steps of the fit so far.
        phase: ``"train"``: within the task; ``"end"``: after its end, fusion and merge included.
        set: name of the prompts.
        n: how many.
        cosine: mean cosine over the prompts at the last token, one value for each decoder block.
    """

    event: ClassVar[str] = "drift"

    step: int
    at: int
    phase: str
    set: str
    n: int
    cosine: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class WeightDriftEvent(Event):
    """How far the tuned weights are from those before the first task, ``||W - W_0|| / ||W_0||``.

    Args:
        step, at, phase: when, as in :class:`DriftEvent`.
        blocks: over all tuned layers of each decoder block.
        modules: last name of the layers -> over the layers of that name in all blocks.
    """

    event: ClassVar[str] = "weight_drift"

    step: int
    at: int
    phase: str
    blocks: tuple[float, ...]
    modules: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class GateEvent(Event):
    """A task broke the budget of ``SafetyGate``.

    Args:
        step, task: which one.
        action: what was done.
        budget, attack_success_rate, kept_attack_success_rate: allowed, found, and found after the action.
        met: whether the budget is met now.
        mostly_empty: sets most of whose answers were empty, and how many.
        raised_by: how far towards all columns the retention was raised, a fraction.
    """

    event: ClassVar[str] = "gate"

    step: int | None = null_field()
    task: str
    action: str
    budget: float
    attack_success_rate: float
    kept_attack_success_rate: float
    met: bool | None = null_field()
    mostly_empty: Mapping[str, Any] | None = None
    raised_by: float | None = None


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """The fit came to its end.

    Args:
        finished_tasks, tasks: how many, of how many.
        peak_memory: bytes, of the process that wrote it: the most that was allocated on its GPU, or that the process
            held where it trained on the CPU; ``None`` where that is not known (Windows, older files).
    """

    event: ClassVar[str] = "end"

    finished_tasks: int | None = null_field()
    tasks: int | None = null_field()
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class SafetyCalibrationEvent(Event):
    """How the harmful inputs were chosen that calibrate safety.

    Args:
        asked, refused, used: inputs.
        judge: the judge that recognized refusals.
        records: where the used ones are.
        answers: whose the refusals are: ``"model"`` or ``"given"``.
    """

    event: ClassVar[str] = "safety_calibration"

    asked: int | None = null_field()
    refused: int | None = null_field()
    used: int | None = null_field()
    judge: str | None = None
    records: tuple[str, ...] | None = None
    answers: str | None = None


def event_of(record: Mapping[str, Any], where: str) -> Event | None:
    """The event that a line holds; ``None`` for a kind that is not known here.

    Raises:
        ValueError: named by ``where``: a key that is missing, or has a value of another type.
    """
    kind = KINDS.get(record["event"])
    if kind is RunEvent:
        for task in _items(record.get("tasks")):
            if not isinstance(task, str):
                raise ValueError(f"{where}: the task {shown(task)} of a run; expected a name.")
        for item in _items(record.get("sets")):
            if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("name", "kind")):
                raise ValueError(f"{where}: the set {shown(item)} of a run; expected {{'name', 'kind'}}.")
        kind = TestedEvent if "tested" in record else RunEvent
    return None if kind is None else kind.from_record(record, where)


def _items(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else ()
