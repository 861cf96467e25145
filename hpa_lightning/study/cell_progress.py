"""How far a running cell is, and how long its rest will take, from its result file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TaskSeconds = dict[int, float]
"""Step -> seconds: of a task's training, its method and its scoring; -1: the first scoring."""


@dataclass(frozen=True)
class _Seen:
    done: int
    """Tasks that are through, scoring and all."""
    tasks: int | None
    scored_first: bool
    seconds: TaskSeconds


@dataclass
class CellProgress:
    """What is said of one running cell.

    A task is expected to take what the cell's own finished ones took on average; before there is one, what it took in
    ``before``. While nothing of the cell ends, the estimate falls with the clock. Where nothing is known there is none:
    during the first scoring, during the first task of the first run, and once a task takes longer than expected.

    Args:
        file: the result file; it may not be there yet.
        before: the times of finished runs that differ in their seed alone.
    """

    file: Path
    before: Sequence[TaskSeconds] = ()
    _at: tuple[int, bool] | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)

    def said(self, now: float) -> str:
        """Return how far the cell is.

        Args:
            now: seconds of a clock that runs on.
        """
        if not self.file.exists():
            return "starts"
        seen = _read(self.file)
        if self._at != (at := (seen.done, seen.scored_first)):
            self._at, self._since = at, now
        text = f"{seen.done} tasks done"
        if seen.tasks is None or (seen.done == 0 and not seen.scored_first):
            return text
        if seen.done >= seen.tasks:
            return f"{text}, ends"
        left = [self._expected(step, seen) for step in range(seen.done, seen.tasks)]
        if any(map(math.isnan, left)):
            return text
        left[0] -= max(now - self._since, seen.seconds.get(seen.done, 0.0))
        if left[0] < 0:
            return f"{text}, the next takes longer than expected"
        return f"{text}, about {sum(left) / 60:.0f} min left"

    def _expected(self, step: int, seen: _Seen) -> float:
        own = [seen.seconds[number] for number in range(seen.done) if number in seen.seconds]
        known = own or [times[step] for times in self.before if step in times]
        return sum(known) / len(known) if known else math.nan


def task_seconds(file: Path) -> TaskSeconds:
    """Return what each task of a run took, from its result file."""
    return _read(file).seconds


def _read(file: Path) -> _Seen:
    tasks = None
    times: dict[tuple[Any, ...], float] = {}  # a run that was interrupted and went on may tell one twice
    for line in file.read_text(errors="replace").splitlines():
        if line.startswith(('{"event": "run"', '{"event": "time"')) and (event := _event(line)):
            if event["event"] == "run":
                tasks = len(event.get("tasks", ())) or tasks
            elif isinstance(event.get("step"), int):
                key = tuple(event.get(name) for name in ("step", "phase", "by", "number"))
                times[key] = float(event.get("seconds") or 0.0)
    seconds: TaskSeconds = {}
    for (step, *_), spent in times.items():
        seconds[step] = seconds.get(step, 0.0) + spent
    scored = {step for step, phase, *_ in times if phase == "evaluate"}
    first = any(step == -1 and phase in ("evaluate", "shared") for step, phase, *_ in times)
    return _Seen(max(scored, default=-1) + 1, tasks, first or bool(scored), seconds)


def _event(line: str) -> Mapping[str, Any] | None:
    """The event of a line; ``None`` of one that is being written."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
