"""What a run measured: scores, matrices and summaries, read from its result file."""

from __future__ import annotations

import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch

from hpa_lightning.metrics import (
    attack_success_rise,
    average_performance,
    backward_transfer,
    mean_attack_success_rate,
    mean_over_refusal_rate,
)
from hpa_lightning.metrics.scoring import mostly_empty
from hpa_lightning.metrics.tasks import CHOICE_METRICS, METRICS, NO_SHARES
from hpa_lightning.redaction import masked_arguments
from hpa_lightning.results.events import (
    CurveEvent,
    Event,
    ResumeEvent,
    RetentionEvent,
    RunEvent,
    ScoreEvent,
    TestedEvent,
    TimeEvent,
    event_of,
)
from hpa_lightning.results.result_file import last_of_each, read_results, result_file
from hpa_lightning.values import shown

KINDS = ("task", "safety", "over_refusal", "helpfulness")

#: What is counted of a set's answers beside their score.
COUNTED = ("empty", "cut", "no_option")

_SHARES = frozenset(METRICS | CHOICE_METRICS) - NO_SHARES
_ROUNDING = 1e-6  # by which a mean of fractions may exceed 1

#: Figures beside a score that are no fractions.
COUNTS = ("n", "points")

_Kind = TypeVar("_Kind", bound=Event)


def is_count(measure: str) -> bool:
    """Whether one of `RunResults.measures` is in points, and no fraction.

    >>> is_count("mme/points"), is_count("mme/accuracy_plus"), is_count("points")
    (True, False, False)
    """
    _, _, figure = measure.partition("/")
    return figure in COUNTS


def source_commit(folder: str | PathLike[str] | None = None) -> str | None:
    """The git commit of the source code that runs, with ``-dirty`` behind it if files were changed since.

    Args:
        folder: where the code is; default this package's folder.

    Returns:
        The full hash, or None if the code is not in a git repository (an installed package), if it lies
        in one that does not track it, or if git is not installed.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An environment inside some other repository must not report that repository's commit.
        if not git("ls-files", "."):
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def run_origin(device: torch.device, precision: str) -> dict[str, Any]:
    """What the run is made with; secrets of the command line are masked.

    Args:
        device: of the model.
        precision: in words.
    """
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("hpa-lightning", "torch", "lightning", "transformers", "peft")},
            "device": _device_name(device),
            "precision": precision,
        },
        "command": shlex.join([Path(sys.argv[0]).name, *masked_arguments(sys.argv[1:])]),
        "commit": source_commit(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def nothing_retained(audit: Sequence[Mapping[str, Any]]) -> str | None:
    """The warning for an audit of which no layer retains anything; ``None`` where one does.

    Args:
        audit: entries of :func:`hpa_lightning.functional.focus_partition`, one for each layer; may be empty.

    Example:
        >>> nothing_retained([{"columns": 20, "retained": 0}, {"columns": 64, "retained": 0}])
        'no column is retained in any of 2 linear layers (the narrowest has 20): nothing is kept from before the task. \
p_min and p_max are in percent of the columns; raise them.'
        >>> nothing_retained([{"columns": 20, "retained": 0}, {"columns": 64, "retained": 1}])
    """
    if not audit or any(entry["retained"] for entry in audit):
        return None
    units = audit[0].get("units", "columns")
    return (
        f"no {units.removesuffix('s')} is retained in any of {len(audit)} linear layers (the narrowest has "
        f"{min(entry['columns'] for entry in audit)}): nothing is kept from before the task. p_min and p_max are in "
        f"percent of the {units}; raise them."
    )


def retention_summary(events: Sequence[RetentionEvent]) -> dict[str, float]:
    """Means over the linear layers.

    Returns:
        ``percent`` of all columns that were retained; ``shared_of_safety_focused``, the mean share of a layer's
        safety-focused columns that are task-focused too; mean ``alpha``; mean absolute ``projection_scale``. NaN where
        no layer tells.

    Raises:
        ValueError: no event.

    Example:
        >>> layer = RetentionEvent(columns=20, retained=2, safety_focused=4, shared=3, alpha=0.5)
        >>> retention_summary([layer])["percent"], retention_summary([layer])["shared_of_safety_focused"]
        (10.0, 0.75)
    """
    if not events:
        raise ValueError("got no retention event; expected one for each linear layer.")
    return {
        "percent": 100.0 * sum(event.retained for event in events) / sum(event.columns for event in events),
        "shared_of_safety_focused": _mean(
            event.shared / max(event.safety_focused, 1)
            for event in events
            if event.shared is not None and event.safety_focused is not None
        ),
        "alpha": _mean(event.alpha for event in events if event.alpha is not None),
        "abs_projection_scale": _mean(
            abs(event.projection_scale) for event in events if event.projection_scale is not None
        ),
    }


def _mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    found = list(values)
    return float(np.mean(found)) if found else math.nan


class RunResults:
    """One run's results, ready to be tabulated.

    Args:
        records: the lines' objects of one run, in the order they were written.
        path: where they come from (for messages and labels).

    Attributes:
        about: what the run is.
        run: the same as the object of its line.

    Raises:
        ValueError: if there is no ``run`` event with the tasks and the sets, a set was scored with several metrics, or
            a share is outside [0, 1], as one in percent is.
    """

    def __init__(self, records: list[dict[str, Any]], path: str | PathLike[str] = "") -> None:
        self.path = Path(path)
        self.records = last_of_each(records)
        found = [event_of(record, f"{self.path}, event {index}") for index, record in enumerate(self.records)]
        self._events = [event for event in found if event is not None]
        runs = self.events(RunEvent)
        if not runs:
            raise ValueError(f'{self.path}: no "run" event, so the tasks and the sets of the run are not known.')
        self.about = runs[-1]
        self.run = self.events("run")[-1]
        if missing := {"tasks", "sets"} - set(self.run):
            raise ValueError(f'{self.path}: the "run" event lacks {sorted(missing)}.')
        if not self.about.tasks:
            raise ValueError(f'{self.path}: the "run" event has no tasks; expected at least one.')
        if twice := sorted({task for task in self.about.tasks if self.about.tasks.count(task) > 1}):
            raise ValueError(f'{self.path}: the "run" event has tasks of the same name, {shown(twice)}.')
        self._scores: dict[tuple[int, str, str], float] = {}
        self._figures: dict[tuple[int, str], float] = {}
        metrics: dict[str, str] = {}
        for event in self.events(ScoreEvent):
            if not -1 <= event.step < len(self.about.tasks):
                raise ValueError(
                    f"{self.path}: a score of step {shown(event.step)} in a run of {len(self.about.tasks)} tasks; "
                    "expected -1 (the aligned model) or the number of a task."
                )
            known = metrics.setdefault(event.set, event.metric)
            if known != event.metric:
                raise ValueError(
                    f"{self.path}: the set {shown(event.set)} was scored with {shown(known)} and "
                    f"{shown(event.metric)}; the matrix holds one metric per set."
                )
            score = math.nan if event.score is None else float(event.score)
            if event.metric in _SHARES and (score < 0 or score > 1 + _ROUNDING):
                raise ValueError(
                    f"{self.path}: the score {shown(event.score)} of the set {shown(event.set)} by {event.metric}; "
                    "expected a fraction in [0, 1] (not percent)."
                )
            self._scores[event.step, event.kind, event.set] = score
            for figure, value in (event.figures or {}).items():
                if value is not None and not isinstance(value, int | float):
                    raise ValueError(
                        f"{self.path}: the figure {shown(figure)} of the set {shown(event.set)} is {shown(value)}; "
                        "expected a number."
                    )
                self._figures[event.step, f"{event.set}/{figure}"] = math.nan if value is None else float(value)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> RunResults:
        """Reads a result file, or the one in a run's folder."""
        return cls(read_results(path), result_file(path))

    @overload
    def events(self, kind: type[_Kind]) -> list[_Kind]: ...

    @overload
    def events(self, kind: str) -> list[dict[str, Any]]: ...

    def events(self, kind: type[_Kind] | str) -> list[_Kind] | list[dict[str, Any]]:
        """All events of one kind, in order.

        Args:
            kind: a class of :mod:`hpa_lightning.results.events`; or the name of a kind, for the lines' objects as they
                stand.
        """
        if isinstance(kind, str):
            return [record for record in self.records if record["event"] == kind]
        return [event for event in self._events if isinstance(event, kind)]

    @property
    def method(self) -> str:
        """Name of the method; a run that has not been scored after all of its tasks says after how many it was.

        Means over a part of the stream are not those of the stream: such runs are in rows of their own. A model that
        was tested alone has no stream.
        """
        name = "unknown" if self.about.method is None else self.about.method
        done = max(self.steps, default=-1) + 1
        whole = done == len(self.tasks) or isinstance(self.about, TestedEvent)
        return name if whole else f"{name} ({done} of {len(self.tasks)} tasks)"

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.about.seed

    @property
    def commits(self) -> list[str]:
        """The commits of the code that made the run: of its start, then those of its resumes, each once."""
        made = [self.about.commit, *(event.commit for event in self.events(ResumeEvent))]
        return list(dict.fromkeys(commit or "not recorded" for commit in made))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in stream order."""
        return list(self.about.tasks)

    @property
    def tested(self) -> list[str]:
        """Names of the tasks that have a test set, in stream order: a step of safety tuning, say, has none."""
        scored = set(self.names("task"))
        return [task for task in self.tasks if task in scored] or self.tasks

    @property
    def sets(self) -> list[Mapping[str, str]]:
        """The evaluation sets, each with `name` and `kind` (``task``, ``safety``, ``over_refusal`` or
        ``helpfulness``)."""
        return list(self.about.sets)

    @property
    def steps(self) -> list[int]:
        """The steps with a score, in order; -1 is the aligned model before any task."""
        return sorted({step for step, _, _ in self._scores})

    def names(self, kind: str) -> list[str]:
        """Names of the sets of one kind, in the run's order."""
        return [entry["name"] for entry in self.sets if entry["kind"] == kind]

    def scores(self, step: int, kind: str) -> dict[str, float]:
        """Score of every set of one kind at a step, fractions; NaN = not measured."""
        return {name: self._scores.get((step, kind, name), math.nan) for name in self.names(kind)}

    def matrix(self) -> np.ndarray:
        """Scores `R[j, i]` after task `j` on the `i`-th task with a test set, `(tasks, tested)`, float64.

        NaN = not measured.
        """
        return np.array(
            [[self._scores.get((j, "task", task), math.nan) for task in self.tested] for j in range(len(self.tasks))]
        )

    def learnt(self) -> np.ndarray:
        """Score on each task with a test set right after it was learnt, `(tested,)`, float64; NaN = not measured."""
        steps = [self.tasks.index(task) for task in self.tested]
        return self.matrix()[steps, np.arange(len(steps))]

    def initial(self) -> dict[str, float]:
        """Score of the aligned model on every task with a test set, before any of them was learnt."""
        return {task: self._scores.get((-1, "task", task), math.nan) for task in self.tested}

    def safety(self, step: int) -> dict[str, float]:
        """Attack success rate of every safety set at a step, fractions; -1 is the aligned model."""
        return self.scores(step, "safety")

    @property
    def measures(self) -> list[str]:
        """What :meth:`mean_score` takes: the names of the sets, and ``SET/FIGURE`` for the further figures of sets."""
        return [*(entry["name"] for entry in self.sets), *self.further_measures]

    @property
    def further_measures(self) -> list[str]:
        """``SET/FIGURE`` for all that the sets' metrics report beside the score, as ``figstep/by_likelihood``."""
        return list(dict.fromkeys(name for _, name in self._figures))

    def mean_score(self, sets: Sequence[str], step: int) -> float:
        """Mean score of some sets, of whatever kind, at a step, a fraction; NaN where one of them was not measured.

        Args:
            sets: of :attr:`measures`: a set for its score, ``SET/FIGURE`` for a figure that its metric reports beside
                the score, such as ``figstep/by_likelihood``.
            step: -1 is the aligned model.
        """
        found = {name: score for (at, _, name), score in self._scores.items() if at == step}
        found |= {name: value for (at, name), value in self._figures.items() if at == step}
        return float(np.mean([found.get(name, math.nan) for name in sets]))

    def is_share(self, measure: str) -> bool:
        """Whether one of :attr:`measures` lies between 0 and 1 whatever the model does; CIDEr and points do not.

        A metric that this package does not know is taken for a share while this run has no value outside.
        """
        scored = [event for kind in (ScoreEvent, CurveEvent) for event in self.events(kind) if event.set == measure]
        values = [event.score for event in scored if event.score is not None]
        values += [value for (_, name), value in self._figures.items() if name == measure]
        outside = any(value < 0 or value > 1 + _ROUNDING for value in values)
        return not (outside or is_count(measure) or any(event.metric in NO_SHARES for event in scored))

    def over_refusal(self, step: int) -> dict[str, float]:
        """Over-refusal rate of every harmless set at a step, fractions; -1 is the aligned model."""
        return self.scores(step, "over_refusal")

    def answers(self, step: int) -> dict[str, dict[str, int]]:
        """How many answers of each set there were at a step, and how many were empty or cut by the limit.

        Returns:
            Set name -> ``{"n", "empty", "cut", "no_option"}``; of what was not counted (older files,
            multiple choice, a foreign module) there is no key.
        """
        found = {}
        for event in self.events(ScoreEvent):
            counts = {key: int(value) for key in COUNTED if (value := getattr(event, key)) is not None}
            if event.step == step and event.n is not None and counts:
                found[event.set] = {"n": event.n, **counts}
        return found

    def mostly_empty(self, step: int) -> dict[str, str]:
        """Sets most of whose answers were empty at a step -> ``"9 of 10"``.

        A task's set counts after that task alone, and of the aligned model: what is not taught yet may well stay
        without an answer.
        """
        ahead = set(self.tasks[step + 1 :]) & set(self.names("task")) if step >= 0 else ()
        return mostly_empty({name: one for name, one in self.answers(step).items() if name not in ahead})

    def scored(self, step: int) -> dict[str, ScoreEvent]:
        """Set name -> its score event at a step."""
        return {event.set: event for event in self.events(ScoreEvent) if event.step == step}

    def share_of_answers(self, what: str, step: int, kinds: Sequence[str] = KINDS) -> float:
        """Share of the generated answers to all sets of some kinds that were ``"empty"``, ``"cut"``, ..., a fraction.

        NaN = not counted.
        """
        names = {name for kind in kinds for name in self.names(kind)}
        counts = [one for name, one in self.answers(step).items() if what in one and name in names]
        total = sum(one["n"] for one in counts)
        return sum(one[what] for one in counts) / total if total else math.nan

    def decodings(self) -> dict[str, dict[str, Any]]:
        """How the answers to each set were decoded, as recorded at the last step; without sets of multiple choice."""
        return {event.set: dict(event.decoding) for event in self.events(ScoreEvent) if event.decoding}

    def minutes(self, step: int | None = None) -> float:
        """Time spent up to a step (default: all), minutes; NaN if none was recorded."""
        spent = [
            float(event.seconds)
            for event in self.events(TimeEvent)
            if event.seconds is not None and (step is None or event.step <= step)
        ]
        return sum(spent) / 60 if spent else math.nan

    def summary(self, step: int | None = None) -> dict[str, float]:
        """The figures of one step: AP, BWT, MASR, DASR, over-refusal and the minutes spent; rates are fractions.

        Args:
            step: a task's index from 0, or -1 for the aligned model (its AP is the mean over all tasks, before any
                was learnt); default the last step with a score.

        Returns:
            ``{"AP", "BWT", "MASR", "DASR", "over_refusal", "helpfulness", "minutes", "empty", "cut", "no_option"}``;
            NaN = not measured. The last three are shares of the answers to all sets where they are counted.
        """
        last = step if step is not None else max(self.steps, default=-1)
        if last == -1:
            aligned = np.array(list(self.initial().values()))
            # The aligned model has no row in the matrix; as the last row of one, its mean is over all tasks.
            performance = average_performance(np.tile(aligned, (len(aligned), 1)), len(aligned) - 1)
            transfer = torch.tensor(math.nan)
        elif self.tested != self.tasks:
            performance, transfer = self._performance_of_tested(last)
        else:
            performance = average_performance(self.matrix(), last)
            transfer = backward_transfer(self.matrix(), last)
        safety, harmless, helpful = self.safety(last), self.over_refusal(last), self.scores(last, "helpfulness")
        return {
            "AP": float(performance),
            "BWT": float(transfer),
            "MASR": float(mean_attack_success_rate(safety)) if safety else math.nan,
            "DASR": float(attack_success_rise(safety, self.safety(-1))) if safety else math.nan,
            "over_refusal": float(mean_over_refusal_rate(harmless)) if harmless else math.nan,
            "helpfulness": float(np.mean(list(helpful.values()))) if helpful else math.nan,
            "minutes": self.minutes(step),
            **{what: self.share_of_answers(what, last) for what in COUNTED},
        }

    def _performance_of_tested(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """AP and BWT where some tasks have no test set: the others count, those before the step for BWT.

        The matrix of the metrics is square: its rows are the steps of the tested tasks, the last one is ``step``, and a
        step without a test set brings a column that neither counts for AP nor, as the last, for BWT.
        """
        names = [task for task in self.tested if self.tasks.index(task) <= step]
        if not names:
            return torch.tensor(math.nan), torch.tensor(math.nan)
        now = self.matrix()[step, : len(names)]
        rows = np.diag(self.learnt()[: len(names)])
        performance = average_performance(np.tile(now, (len(names), 1)))
        if self.tasks[step] not in names:
            rows, now = np.pad(rows, (0, 1)), np.append(now, 0.0)
        rows[-1] = now
        return performance, backward_transfer(rows)
