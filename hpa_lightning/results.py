"""The result file: JSON lines written while a run lasts, and read by reports.

One JSON object per line; `docs/architecture.md` lists the events and their keys. Scores and rates are
fractions in [0, 1]. A resumed run may repeat a step: of two lines with the same identity the last one counts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpa_lightning.metrics import (
    attack_success_rise,
    average_performance,
    backward_transfer,
    mean_attack_success_rate,
    mean_over_refusal_rate,
)

RESULT_FILE = "results.jsonl"

#: The keys that tell two lines of one event apart; every other key is a value.
IDENTITY_KEYS = ("event", "step", "after", "task", "set", "kind", "metric", "layer", "module", "phase")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become null; arrays and tensors become lists."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class ResultWriter:
    """Appends events to a result file, one JSON object per line.

    Every line is written with a single system call and reaches the disk before `write` returns, so that a
    crash costs at most the line being written. The folder and the file are made at the first `write`; the
    half line of an earlier crash is cut off then. In a distributed run only the process of rank zero may
    write (the caller's responsibility).

    Args:
        path: the file, usually ``results.jsonl`` in the run's folder.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> writer = ResultWriter(folder / "run" / "results.jsonl")
        >>> writer.write({"event": "time", "step": 0, "phase": "train", "seconds": 12.5})
        >>> writer.write({"event": "time", "step": 0, "phase": "train", "seconds": float("nan")})
        >>> read_results(folder / "run")
        [{'event': 'time', 'step': 0, 'phase': 'train', 'seconds': None}]
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._repaired = False

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one event.

        Args:
            record: the event's keys, among them ``"event"``. Numbers that are not finite are written as null.

        Raises:
            ValueError: if ``"event"`` is missing or a value has no JSON form.
        """
        if not isinstance(record.get("event"), str):
            raise ValueError(f'A result needs the key "event" with the name of the event, got {dict(record)!r}.')
        try:
            line = json.dumps(_finite(record), allow_nan=False, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"The {record['event']!r} event has a value without a JSON form: {error}.") from error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._repaired:
            _cut_torn_line(self.path)
            self._repaired = True
        # O_APPEND places every line at the end, whoever else has the file open.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            data = f"{line}\n".encode()
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cut_torn_line(path: Path) -> None:
    """Removes a last line without its newline: what is appended next would be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            warnings.warn(f"{path}: the last line was not finished (a crash?) and is cut off.", stacklevel=3)
            file.truncate(content.rfind(b"\n") + 1)


def result_file(path: str | PathLike[str]) -> Path:
    """The result file itself, or the one in the run's folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    file = path / RESULT_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"No result file at {file}: expected a {RESULT_FILE} or the folder that holds one.")
    return file


def read_results(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Reads a result file; of lines with the same identity the last one counts.

    Args:
        path: the file, or the run's folder.

    Returns:
        The events, null as None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is not a JSON object with an event. A broken *last* line without its newline is
        what a
            crash leaves behind: it is left out with a warning.
    """
    file = result_file(path)
    lines = file.read_bytes().split(b"\n")
    torn = lines.pop()
    if torn.strip():
        warnings.warn(f"{file}: the last line was not finished (a crash?) and is left out.", stacklevel=2)
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not valid JSON ({error}); repair or remove it.") from error
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            raise ValueError(f'{file}, line {number} is not an object with the key "event"; repair or remove it.')
        records.append(record)
    return last_of_each(records)


def last_of_each(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the records with the same identity the last one, at the place of the first.

    Example:
        >>> line = {"event": "time", "step": 0, "phase": "fuse", "seconds": 1.0}
        >>> [record["seconds"] for record in last_of_each([line, {**line, "seconds": 2.0}])]
        [2.0]
    """
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        # A run has one description, whatever a resumed process writes there.
        keys = ("event",) if record["event"] == "run" else IDENTITY_KEYS
        kept[tuple(json.dumps(record.get(key)) for key in keys)] = record
    return list(kept.values())


def source_commit(folder: str | PathLike[str] | None = None) -> str | None:
    """The git commit of the source code that runs, with ``-dirty`` behind it if files were changed since.

    Args:
        folder: where the code lies; default this package's folder.

    Returns:
        The full hash, or None if the code does not lie in a git repository (an installed package), if it lies
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


class RunResults:
    """One run's results, ready to be tabulated.

    Args:
        records: the events of one run, in the order they were written.
        path: where they come from (for messages and labels).

    Raises:
        ValueError: if there is no ``run`` event with the tasks and the sets, or a set was scored with several
        metrics.
    """

    def __init__(self, records: list[dict[str, Any]], path: str | PathLike[str] = "") -> None:
        self.path = Path(path)
        self.records = last_of_each(records)
        runs = self.events("run")
        if not runs:
            raise ValueError(f'{self.path}: no "run" event, so the tasks and the sets of the run are not known.')
        self.run = runs[-1]
        if missing := {"tasks", "sets"} - set(self.run):
            raise ValueError(f'{self.path}: the "run" event lacks {sorted(missing)}.')
        self._scores: dict[tuple[int, str, str], float] = {}
        metrics: dict[str, str] = {}
        for record in self.events("score"):
            known = metrics.setdefault(record["set"], record["metric"])
            if known != record["metric"]:
                raise ValueError(
                    f"{self.path}: the set {record['set']!r} was scored with {known} and {record['metric']}; "
                    "the matrix holds one metric per set."
                )
            score = math.nan if record["score"] is None else float(record["score"])
            self._scores[record["step"], record["kind"], record["set"]] = score

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> RunResults:
        """Reads a result file, or the one in a run's folder."""
        return cls(read_results(path), result_file(path))

    def events(self, event: str) -> list[dict[str, Any]]:
        """All records of one event, in order."""
        return [record for record in self.records if record["event"] == event]

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.run.get("method", "unknown"))

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.run.get("seed")

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in stream order."""
        return list(self.run["tasks"])

    @property
    def sets(self) -> list[dict[str, str]]:
        """The evaluation sets, each with `name` and `kind` (``task``, ``safety`` or ``over_refusal``)."""
        return list(self.run["sets"])

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
        """Scores `R[j, i]` on task `i` after task `j`, shape `(T, T)`, float64; NaN = not measured."""
        return np.array(
            [[self._scores.get((j, "task", task), math.nan) for task in self.tasks] for j in range(len(self.tasks))]
        )

    def initial(self) -> dict[str, float]:
        """Score of the aligned model on every task, before any of them was learnt."""
        return {task: self._scores.get((-1, "task", task), math.nan) for task in self.tasks}

    def safety(self, step: int) -> dict[str, float]:
        """Attack success rate of every safety set at a step, fractions; -1 is the aligned model."""
        return self.scores(step, "safety")

    def over_refusal(self, step: int) -> dict[str, float]:
        """Over-refusal rate of every harmless set at a step, fractions; -1 is the aligned model."""
        return self.scores(step, "over_refusal")

    def minutes(self, step: int | None = None) -> float:
        """Time spent up to a step (default: all), minutes; NaN if none was recorded."""
        spent = [
            float(record["seconds"])
            for record in self.events("time")
            if record["seconds"] is not None and (step is None or record["step"] <= step)
        ]
        return sum(spent) / 60 if spent else math.nan

    def summary(self, step: int | None = None) -> dict[str, float]:
        """The figures of one step: AP, BWT, MASR, DASR and over-refusal as fractions, and the minutes spent.

        Args:
            step: a task's index from 0, or -1 for the aligned model (its AP is the mean over all tasks,
            before any
                was learnt); default the last step with a score.

        Returns:
            ``{"AP", "BWT", "MASR", "DASR", "over_refusal", "minutes"}``; NaN = not measured.
        """
        last = step if step is not None else max(self.steps, default=-1)
        if last == -1:
            aligned = np.array(list(self.initial().values()))
            # The aligned model has no row in the matrix; as the last row of one, its mean is over all tasks.
            performance = average_performance(np.tile(aligned, (len(aligned), 1)), len(aligned) - 1)
            transfer = torch.tensor(math.nan)
        else:
            performance = average_performance(self.matrix(), last)
            transfer = backward_transfer(self.matrix(), last)
        safety, harmless = self.safety(last), self.over_refusal(last)
        return {
            "AP": float(performance),
            "BWT": float(transfer),
            "MASR": float(mean_attack_success_rate(safety)) if safety else math.nan,
            "DASR": float(attack_success_rise(safety, self.safety(-1))) if safety else math.nan,
            "over_refusal": float(mean_over_refusal_rate(harmless)) if harmless else math.nan,
            "minutes": self.minutes(step),
        }
