"""What the methods of a study cost: time beside plain tuning, and memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence

from hpa_lightning.report.significance import estimate
from hpa_lightning.report.study_tables import StudyCell, checked
from hpa_lightning.results.events import EndEvent, TimeEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import MISSING, Cell, Table

_TRAINING = ("train",)
_METHOD = ("prepare", "calibrate", "remember", "fuse", "gate")
_SCORING = ("evaluate", "evaluate_again", "shared", "drift")


def cost_table(cells: Sequence[StudyCell], reference: str | None) -> Table:
    """One row per method: wall minutes of a run and the most memory it held, mean ± 95 % interval over seeds.

    ``Training`` is the time of the tasks' steps, with what a method does in them; ``Method`` that of its calibration,
    its fusion and its gate; ``Scoring`` that of answers and drift. ``To the reference`` is training and method beside
    those of the reference by the same seed, a ratio, where both had as many threads. A dash stands where a run's times
    were not recorded. Memory is in GB (1e9 bytes), see :class:`~hpa_lightning.results.events.EndEvent`; where some of
    the runs have none, it says of how many it is. ``Threads`` is shown where runs differ in it, and they are warned of.

    Args:
        cells: finished runs of one condition.
        reference: the method that the ratio is to; ``None`` leaves the column out.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    base = {} if reference is None else runs.get(reference, {})
    threads = {method: _threads([cell for cell in cells if cell.method == method]) for method in runs}
    differ = len({cell.threads for cell in cells}) > 1
    if differ:
        said = "; ".join(f"{labels[method]}: {known}" for method, known in threads.items())
        warnings.warn(
            f"the times of runs with other numbers of threads cannot be compared, and have no ratio: {said}.",
            stacklevel=2,
        )
    used = {(cell.method, cell.seed): cell.threads for cell in cells}
    rows: list[list[Cell]] = []
    for method, by_seed in runs.items():
        own = list(by_seed.values())
        row: list[Cell] = [labels[method], len(own), *([threads[method]] if differ else [])]
        row += [estimate([_minutes(run, phases) for run in own]) for phases in (_TRAINING, _METHOD, _SCORING)]
        if reference is not None:
            common = [seed for seed in by_seed if seed in base and used[method, seed] == used[reference, seed]]
            ratios = [_without_scoring(by_seed[seed]) / _without_scoring(base[seed]) for seed in common]
            row.append(estimate(ratios) if ratios else math.nan)
        held = [end.peak_memory for run in own for end in run.events(EndEvent)[-1:] if end.peak_memory is not None]
        memory = estimate([peak / 1e9 for peak in held]) if held else math.nan
        row.append(f"{memory} (of {len(held)} seed{'s' * (len(held) > 1)})" if 0 < len(held) < len(own) else memory)
        rows.append(row)
    ratio = [] if reference is None else [f"To {labels.get(reference, reference)}"]
    times = ["Training, min", "Method, min", "Scoring, min"]
    return Table(["Method", "Seeds", *(["Threads"] if differ else []), *times, *ratio, "Memory, GB"], rows)


def _threads(cells: Sequence[StudyCell]) -> str:
    """The numbers of threads of a method's runs, in words."""
    return ", ".join(dict.fromkeys(MISSING if cell.threads is None else str(cell.threads) for cell in cells))


def _minutes(run: RunResults, phases: Collection[str]) -> float:
    """Time of some phases; NaN where none of the run or one of these was not recorded."""
    times = run.events(TimeEvent)
    spent = [math.nan if event.seconds is None else event.seconds for event in times if event.phase in phases]
    return sum(spent) / 60 if times else math.nan


def _without_scoring(run: RunResults) -> float:
    return _minutes(run, (*_TRAINING, *_METHOD)) or math.nan
