"""The result file: one JSON object per line, written while a run lasts.

`hpa_lightning.results.events` has a class for each event. Scores and rates are fractions in [0, 1]. A resumed run may
repeat a step: of two lines with the same identity the last one counts.
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from hpa_lightning.files import naming_path
from hpa_lightning.parsing import parse_json
from hpa_lightning.results.events import Event, event_of

RESULT_FILE = "results.jsonl"

#: One thread at a time: what another one has written in part would look like the half line of a crash.
_WRITING = threading.Lock()

#: The keys that distinguish two lines of one event; every other key is a value.
IDENTITY_KEYS = (
    "event", "step", "after", "task", "set", "kind", "metric", "layer", "module", "phase", "at", "commit",
    "optimizer_step", "moment", "by", "number",
)  # fmt: skip


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
    half line of an earlier crash is cut off then. Threads may share a file; of several processes only one may
    write, in a distributed run that of rank zero (the caller's responsibility).

    Args:
        path: the file, usually ``results.jsonl`` in the run's folder.

    Example:
        >>> from hpa_lightning.results.events import TimeEvent
        >>> folder = getfixture("tmp_path")
        >>> writer = ResultWriter(folder / "run" / "results.jsonl")
        >>> writer.write(TimeEvent(step=0, phase="train", seconds=12.5))
        >>> writer.write({"event": "time", "step": 0, "phase": "train", "seconds": float("nan")})
        >>> read_results(folder / "run")
        [{'event': 'time', 'step': 0, 'phase': 'train', 'seconds': None}]
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._repaired = False

    def write(self, record: Mapping[str, Any] | Event) -> None:
        """Appends one event.

        Args:
            record: an event, or the keys of one, among them ``"event"``. Numbers that are not finite are written as
                null.

        Raises:
            ValueError: if ``"event"`` is missing or a value has no JSON form.
        """
        line = result_line(record)
        with _WRITING, naming_path(self.path, "the line was not written, those before it are unchanged"):
            self._append(line)

    def _append(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._repaired:
            _cut_torn_line(self.path)
            self._repaired = True
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except OSError:  # a full disk takes a part of the line
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def result_line(record: Mapping[str, Any] | Event) -> bytes:
    """One event as a line of the file, its end included.

    Raises:
        ValueError: if ``"event"`` is missing or a value has no JSON form.
    """
    if isinstance(record, Event):
        record = record.record()
    if not isinstance(record.get("event"), str):
        raise ValueError(f'A result needs the key "event" with the name of the event, got {dict(record)!r}.')
    try:
        line = json.dumps(_finite(record), allow_nan=False, ensure_ascii=False) + "\n"
        return line.encode(errors="backslashreplace")  # half a surrogate pair: of a file's name that is not UTF-8
    except TypeError as error:
        raise ValueError(f"The {record['event']!r} event has a value that JSON cannot represent: {error}.") from error


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
        ValueError: if a line is not a JSON object with an event. A broken *last* line without its newline is what
            a crash leaves behind: it is left out with a warning.
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
        where = f"{file}, line {number}"
        try:
            record = parse_json(line, f"line {number}")
        except ValueError as error:
            raise ValueError(f"{where} is not valid JSON ({error}); repair or remove it.") from error
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            raise ValueError(f'{where} is not an object with the key "event"; repair or remove it.')
        event_of(record, where)
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
