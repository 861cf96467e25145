"""What the methods of a study cost: time beside plain tuning, and memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from hpa_lightning.report.significance import estimate
from hpa_lightning.report.study_tables import StudyCell, checked
from hpa_lightning.results.events import EndEvent, TimeEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Cell, Table

_TRAINING = ("train",)
_METHOD = ("prepare", "calibrate", "remember", "fuse", "gate")
_SCORING = ("evaluate", "evaluate_again", "shared", "drift")


def cost_table(cells: Sequence[StudyCell], reference: str | None) -> Table:
    """One row per method: wall minutes of a run and the most memory it held, mean ± 95 % interval over seeds.

    ``Training`` is the time of the tasks' steps, with what a method does in them; ``Method`` that of its calibration,
    its fusion and its gate; ``Scoring`` that of answers and drift. ``To the reference`` is training and method beside
    those of the reference by the same seed, a ratio. Memory is in GB (1e9 bytes), see
    :class:`~hpa_lightning.results.events.EndEvent`; runs of before that it was recorded have none.

    Args:
        cells: finished runs of one condition.
        reference: the method that the ratio is to; ``None`` leaves the column out.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    base = {} if reference is None else runs.get(reference, {})
    rows: list[list[Cell]] = []
    for method, by_seed in runs.items():
        own = list(by_seed.values())
        row: list[Cell] = [labels[method], len(own)]
        row += [estimate([_minutes(run, phases) for run in own]) for phases in (_TRAINING, _METHOD, _SCORING)]
        if reference is not None:
            common = [seed for seed in by_seed if seed in base]
            ratios = [_without_scoring(by_seed[seed]) / _without_scoring(base[seed]) for seed in common]
            row.append(estimate(ratios) if ratios else math.nan)
        held = [end.peak_memory for run in own for end in run.events(EndEvent)[-1:] if end.peak_memory is not None]
        row.append(estimate([peak / 1e9 for peak in held]) if held else math.nan)
        rows.append(row)
    ratio = [] if reference is None else [f"To {labels.get(reference, reference)}"]
    return Table(["Method", "Seeds", "Training, min", "Method, min", "Scoring, min", *ratio, "Memory, GB"], rows)


def _minutes(run: RunResults, phases: Collection[str]) -> float:
    return sum(event.seconds or 0.0 for event in run.events(TimeEvent) if event.phase in phases) / 60


def _without_scoring(run: RunResults) -> float:
    return _minutes(run, (*_TRAINING, *_METHOD)) or math.nan
