"""The order of work at a task's start and end, whatever the callbacks' order in the trainer's list."""

from __future__ import annotations

from enum import IntEnum


class StartPhase(IntEnum):
    """What happens one after the other when a task starts; within a phase, the trainer's order counts."""

    TUNING = 0
    """Adapters are merged and restarted, optimizers made again (``SequentialTuning``)."""
    EVALUATION = 10
    """The aligned model is scored (``TaskEvaluation``)."""
    COMPARING = 11
    """The aligned model is looked at, to be compared with later (``LayerDrift``)."""
    ANSWERING = 15
    """What answers is exchanged (``ConstantRefusal``); the first point of ``SafetyCurve``."""
    GUARDING = 20
    """The weights that may come back are kept, and layers are frozen (``SafetyGate``, ``SafetyLayerFreezing``)."""
    MEASURING = 30
    """Layers are found, their weights kept, and what the safety inputs use measured (fusions, ``FocusPartition``)."""
    SUBSPACE = 35
    """A subspace is made of what was measured (``NullSpaceProjection``)."""
    FREEZING = 40
    """Columns are frozen, as measured (``MaskedFreezing``)."""
    PROJECTING = 45
    """Steps are projected from here on, behind the freezing (``OrthogonalProjection``)."""
    LAST = 50
    """Whatever names no phase."""


class EndPhase(IntEnum):
    """What happens one after the other when a task ends; within a phase, the trainer's order counts."""

    REMEMBERING = 5
    """The adapters as trained are remembered (``OrthogonalLoRA``, ``RegLoRA``)."""
    RESTORING = 8
    """What holds after every step is made to hold once more, where something else has written since: in the order of
    the steps, that of ``start_order`` (``NullSpaceProjection``, ``MaskedFreezing``, ``OrthogonalProjection``)."""
    FUSING = 10
    """The weights before the task and as trained become new ones (fusions)."""
    MERGING = 20
    """Adapters are merged into their layers (``SequentialTuning``)."""
    OTHER = 50
    """Whatever names no phase: it sees the merged weights, before they are scored."""
    CURVE = 85
    """The last point of the task (``SafetyCurve``)."""
    EVALUATION = 90
    """The model is scored (``TaskEvaluation``)."""
    COMPARING = 91
    """The model is compared with the aligned one (``LayerDrift``)."""
    JUDGING = 95
    """What the scores say is acted on (``SafetyGate``)."""


def check_phase(kind: str, attribute: str, value: object, phases: type[IntEnum]) -> None:
    """Check where a callback wants to be called; a whole number between two phases is a place, too.

    Raises:
        TypeError: it is no number, with the phases that there are.

    >>> check_phase("MyMethod", "end_order", "FUSING", EndPhase)
    Traceback (most recent call last):
    TypeError: MyMethod.end_order is 'FUSING'; expected EndPhase.REMEMBERING, RESTORING, FUSING, MERGING, OTHER, ...
    """
    other = isinstance(value, IntEnum) and not isinstance(value, phases)
    if not isinstance(value, int) or isinstance(value, bool) or other:
        reported = f"{type(value).__name__}.{value.name}" if isinstance(value, IntEnum) else repr(value)
        raise TypeError(
            f"{kind}.{attribute} is {reported}; expected {_listed(phases)}, or a whole number between two of them."
        )


def _listed(phases: type[IntEnum]) -> str:
    return f"{phases.__name__}.{', '.join(phase.name for phase in phases)}"
