"""Whether a run's results are whole: reports are made of finished runs, or of what was asked for in so many words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpa_lightning.results.events import EndEvent, ScoreEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.values import first_of


def unfinished_run(run: RunResults, all_tasks: bool = False) -> str | None:
    """Say in a few words what a run lacks; ``None`` if it is whole.

    A run is whole when every set was scored after every task, with a number, and where the aligned model was scored,
    every set by it.
    Newer runs say in their ``run`` event that they write an ``end`` event: that has to be there too. It also tells of a
    stream that was ended between two tasks because a callback was asked to, and of a model that was tested alone: the
    tasks after that are not missed, unless ``all_tasks`` asks for them, as a study does: a mean over a part of the
    stream is none over the stream.
    """
    ends = run.events(EndEvent)
    last = len(run.tasks)
    if ends and ends[-1].tasks == last and ends[-1].finished_tasks is not None:
        last = ends[-1].finished_tasks
    if all_tasks and last < len(run.tasks):
        return f"the stream was ended after {last} of {len(run.tasks)} tasks"
    scored = {(event.step, event.set): event.score for event in run.events(ScoreEvent)}
    sets = [item["name"] for item in run.sets]
    first = -1 if any(step == -1 for step, _ in scored) else 0
    for step in range(first, last):
        after = "of the aligned model" if step < 0 else f"after task {step} ({run.tasks[step]!r})"
        if missing := [name for name in sets if (step, name) not in scored]:
            if step < 0:
                return f"the aligned model was not scored on {first_of(missing)}"
            return f"nothing was scored on {first_of(missing)} {after}"
        if broken := [name for name in sets if (score := scored[step, name]) is None or math.isnan(score)]:
            return f"the score on {first_of(broken)} {after} is not a number"
    if run.about.ends and not ends:
        return "all sets were scored, and then the fit was cut off before its end"
    return None


def require_finished(runs: Sequence[RunResults]) -> None:
    """Refuse runs whose results are not whole.

    Raises:
        ValueError: named by the file: the first step that is missing, and what to do.
    """
    for run in runs:
        if reason := unfinished_run(run):
            raise ValueError(
                f"{run.path} is of a run that is not finished: {reason}. Resume the run from its last checkpoint, or "
                "ask for what there is with --unfinished (in Python: unfinished=True)."
            )
