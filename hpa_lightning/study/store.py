"""Where a study's runs are kept: a folder for each cell, and one file that holds many finished cells."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from hpa_lightning.files import path_inside, write_text
from hpa_lightning.parsing import json_object, parse_json, read_text
from hpa_lightning.results.completeness import unfinished_run
from hpa_lightning.results.events import FusionEvent, ProtectionEvent, RetentionEvent, event_of
from hpa_lightning.results.result_file import RESULT_FILE, read_results
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.run_folder import is_locked
from hpa_lightning.study.grid import Cell
from hpa_lightning.values import shown

_MARK = "cell.json"
_STARTED = "started.json"
CONFIG = "config.in.yaml"
_LOCK = "lock"
_STARTED_KEYS: dict[str, type | UnionType] = {"digest": str, "seconds": int | float}
_MARK_KEYS: dict[str, type | UnionType] = {"key": str, **_STARTED_KEYS}
_LONG_EVENTS = frozenset({RetentionEvent.event, FusionEvent.event, ProtectionEvent.event})
"""One for each layer and task; left out of an archive."""


@dataclass(frozen=True)
class Finished:
    """A finished cell's results, and how it was run.

    Args:
        run: the results.
        seconds: wall time.
        threads: of each process, where it ran on the CPU.
    """

    run: RunResults
    seconds: float
    threads: int | None


class Store:
    """Finished cells, in a folder and in archives.

    A cell counts as finished when its mark was written, after its process ended well, for the very configuration that
    is asked for: a cell whose configuration has changed since is refused, not silently taken or run again. A run that
    is in a study under several names is found under each of them.

    Args:
        folder: one folder for each cell, named by its key.
        archives: files written by :meth:`archive`, that count beside the folder.

    Raises:
        FileNotFoundError: an archive does not exist.
        ValueError: an archive is broken.
    """

    def __init__(self, folder: str | PathLike[str], archives: Iterable[str | PathLike[str]] = ()) -> None:
        self.root = Path(folder)
        self.archives = tuple(map(str, archives))
        self._archived: dict[str, dict[str, Any]] = {}
        for path in self.archives:
            self._archived |= _read_archive(Path(path))
        self._keys = {mark["digest"]: key for key, mark in self._archived.items()}
        for file in self.root.glob(f"*/*/*/{_MARK}"):
            mark = _read_note(file, _MARK_KEYS)
            self._keys[mark["digest"]] = mark["key"]

    def folder(self, cell: Cell) -> Path:
        """The folder of a cell's run."""
        return path_inside(self.root, cell.key, "the study")

    def finished(self, cell: Cell) -> Finished | None:
        """The cell's results, or ``None`` if it has not been run to its end.

        Raises:
            ValueError: there are results under the cell's name for another configuration.
        """
        mark = self._found(cell)
        if mark is None:
            return None
        folder = self._of(mark)
        records = mark.get("events") or read_results(folder)
        return Finished(RunResults(records, folder / RESULT_FILE), mark["seconds"], mark.get("threads"))

    def holds_run(self, cell: Cell) -> bool:
        """Whether the finished run itself is in the folder, with what it wrote; an archive holds results alone."""
        return self.finished(cell) is not None and (self.folder(cell) / _MARK).is_file()

    def start(self, cell: Cell) -> Path:
        """Note that a cell is about to run, and return its folder.

        What another configuration has left unfinished there, checkpoints above all, is put aside under another name, so
        that the cell cannot continue from it. The cell's lock has to be held.
        """
        folder = self.folder(cell)
        note = folder / _STARTED
        if note.is_file() and self._started(cell) is None:
            aside = next(
                path for number in count(1) if not (path := folder.with_name(f"{folder.name}.other{number}")).exists()
            )
            aside.mkdir()
            for path in folder.iterdir():
                if path.name != _LOCK:
                    path.replace(aside / path.name)
        if not note.is_file():
            _write_note(note, {"digest": cell.digest, "seconds": 0.0})
        return folder

    def add_time(self, cell: Cell, seconds: float) -> float:
        """Add to the time that a cell has taken, cut-off parts included, and return the sum."""
        note = self.folder(cell) / _STARTED
        spent = (self._started(cell) or 0.0) + seconds
        _write_note(note, {"digest": cell.digest, "seconds": spent})
        return spent

    def _started(self, cell: Cell) -> float | None:
        """The seconds that a cell has taken before; ``None`` if what is in its folder is of another configuration.

        A torn note is reported; then the configuration of the run decides whose the folder is.
        """
        folder = self.folder(cell)
        try:
            note = _read_note(folder / _STARTED, _STARTED_KEYS)
        except ValueError as error:
            warnings.warn(f"{error} The seconds that the cell has taken so far are lost.", stacklevel=2)
            same = _configuration(folder / CONFIG) == cell.config_for(folder)
            (folder / _STARTED).unlink()
            if same:
                _write_note(folder / _STARTED, {"digest": cell.digest, "seconds": 0.0})
            return 0.0 if same else None
        return note["seconds"] if note["digest"] == cell.digest else None

    def has_finished_run(self, cell: Cell) -> bool:
        """Whether the run in the cell's folder came to its end, and only the note of it is missing."""
        try:
            return unfinished_run(RunResults.from_file(self.folder(cell))) is None
        except (ValueError, FileNotFoundError):
            return False

    def finish(self, cell: Cell, seconds: float, threads: int | None) -> None:
        """Mark a cell as finished.

        Raises:
            ValueError: its result file lacks the scores after the last task.
        """
        run = RunResults.from_file(self.folder(cell))
        scored = run.scores(len(run.tasks) - 1, "task")
        if any(score != score for score in scored.values()):
            raise ValueError(f"{cell.key}: the run ended without scores after its last task: {scored}.")
        mark = {"key": cell.key, "digest": cell.digest, "seconds": round(seconds, 1), "threads": threads}
        _write_note(self.folder(cell) / _MARK, mark)
        self._keys[cell.digest] = cell.key

    def lock(self, cell: Cell) -> FileLock | None:
        """Take the cell's lock, ``None`` if another process has it; releasing it or the end of the process frees it.

        A fit has a lock on its folder itself: a cell stays locked as long as its process lives, even if the one that
        started it has been killed.
        """
        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        if is_locked(folder):
            lock.release()
            return None
        return lock

    def is_locked(self, cell: Cell) -> bool:
        """Whether a process is running the cell."""
        lock = self.lock(cell)
        if lock is not None:
            lock.release()
        return lock is None

    def archive(self, cells: Iterable[Cell], path: str | PathLike[str]) -> int:
        """Write the finished cells into one file of JSON lines, beside what it already holds.

        The events that tell of single layers are left out, and the folder of the store; what a report shows is kept.

        Returns:
            The number of cells in the file.
        """
        path = Path(path)
        held = _read_archive(path) if path.exists() else {}
        for cell in cells:
            mark = self._found(cell)
            if mark is not None:
                events = mark.get("events") or read_results(self._of(mark))
                short = [self._portable(event) for event in events if event["event"] not in _LONG_EVENTS]
                held[mark["key"]] = {**mark, "events": short}
        write_text(path, "".join(json.dumps(held[key]) + "\n" for key in sorted(held)))
        return len(held)

    def _portable(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event without the place of the store on this machine."""
        command = event.get("command")
        return {**event, "command": command.replace(f"{self.root}/", "")} if isinstance(command, str) else event

    def _found(self, cell: Cell) -> dict[str, Any] | None:
        mark = self._mark(cell.key) or self._mark(self._keys.get(cell.digest, ""))
        if mark is None:
            return None
        if mark["digest"] != cell.digest:
            raise ValueError(
                f"{cell.key}: its results were made with another configuration (digest {mark['digest']}, now "
                f"{cell.digest}). Give the changed method another name, or remove {self.folder(cell)} (and its line in "
                "the archive) to run it again."
            )
        return mark

    def _of(self, mark: Mapping[str, Any]) -> Path:
        return path_inside(self.root, mark["key"], f"a file of the store {self.root}")

    def _mark(self, key: str) -> dict[str, Any] | None:
        if not key:
            return None
        path = path_inside(self.root, f"{key}/{_MARK}", f"a file of the store {self.root}")
        if path.is_file():
            return _read_note(path, _MARK_KEYS)
        return self._archived.get(key)


def _configuration(path: Path) -> Any:
    """What is in a configuration, ``None`` if nothing that can be read does."""
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _read_note(path: Path, keys: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """What a small file of the store holds; a torn one is named."""
    try:
        note = json_object(path)
        _check_keys(note, keys, str(path))
    except ValueError as error:
        raise ValueError(
            f"{error} A process was killed while it wrote; remove the file to run the cell again."
        ) from error
    return note


def _write_note(path: Path, note: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(note) + "\n")


def _check_keys(found: Mapping[str, Any], keys: Mapping[str, type | UnionType], where: str) -> None:
    for key, kind in keys.items():
        if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
            raise ValueError(f"{where}: {key!r} is {shown(found.get(key))}, which no study writes there.")


def _read_archive(path: Path) -> dict[str, dict[str, Any]]:
    held = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line, f"line {number}")
        except ValueError as error:
            raise ValueError(f"{where} is not valid JSON ({error}); restore the file.") from error
        if not isinstance(entry, Mapping) or not {"key", "digest", "seconds", "events"} <= set(entry):
            raise ValueError(f"{where} is not a study's cell; expected a file of `study archive`.")
        _check_keys(entry, {**_MARK_KEYS, "events": list}, where)
        for event in entry["events"]:
            if not isinstance(event, Mapping) or not isinstance(event.get("event"), str):
                raise ValueError(f'{where}: {shown(event)} is not an object with the key "event"; restore the file.')
            event_of(event, where)
        held[entry["key"]] = dict(entry)
    return held
