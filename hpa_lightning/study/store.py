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
from hpa_lightning.study.grid import Cell, Study
from hpa_lightning.values import shown

_MARK = "cell.json"
_STARTED = "started.json"
CONFIG = "config.in.yaml"
_LOCK = "lock"
_STARTED_KEYS: dict[str, type | UnionType] = {"digest": str, "seconds": int | float}
_MARK_KEYS: dict[str, type | UnionType] = {"key": str, **_STARTED_KEYS}
_Run = tuple[str, str]
"""A cell's key, and the digest of its configuration: of one key, there can be several."""
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
    is asked for, and its results are whole (:func:`~hpa_lightning.results.completeness.unfinished_run`, with all
    tasks): a cell whose configuration has changed since is refused, not silently taken or run again. A run that is in a
    study under several names is found under each of them. Where both the folder and an archive have a run, the folder
    counts.

    Args:
        folder: one folder for each cell, named by its key.
        archives: files written by :meth:`archive`, that count beside the folder.

    Raises:
        FileNotFoundError: an archive does not exist.
        ValueError: an archive is broken, or two of their lines have other results of one run.
    """

    def __init__(self, folder: str | PathLike[str], archives: Iterable[str | PathLike[str]] = ()) -> None:
        self.root = Path(folder)
        self.archives = tuple(map(str, archives))
        archived = {path: _read_archive(Path(path)) for path in self.archives}
        self._runs = {path: frozenset(lines) for path, lines in archived.items()}
        self._archived: dict[_Run, dict[str, Any]] = {}
        places: dict[_Run, str] = {}
        for path, lines in archived.items():
            for run, line in lines.items():
                _check_alike(self._archived.setdefault(run, line), line, places.setdefault(run, path), path)
        self._by_key = {key: line for (key, _), line in self._archived.items()}
        self._by_digest = {digest: line for (_, digest), line in self._archived.items()}
        self._keys: dict[str, str] = {}  # digest -> the name that it was run under
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
        run = self._results(mark)
        return None if unfinished_run(run, all_tasks=True) else Finished(run, mark["seconds"], mark.get("threads"))

    def lacks(self, cell: Cell) -> str | None:
        """What the results of a cell whose process ended well lack, in words; ``None``: nothing, or it has none.

        Raises:
            ValueError: as :meth:`finished`.
        """
        mark = self._found(cell)
        return None if mark is None else unfinished_run(self._results(mark), all_tasks=True)

    def run_folder(self, cell: Cell) -> Path | None:
        """Where the cell's finished run itself is, with what it wrote, under whatever name it was run.

        ``None`` where it is not finished, or where an archive has its results alone.
        """
        if self.finished(cell) is None:
            return None
        mark = self._in_folder(cell)
        return None if mark is None else self._of(mark)

    def config(self, cell: Cell) -> dict[str, Any]:
        """What the cell's process gets: its configuration with its folder, and that of the run it starts with."""
        return cell.config_for(self.folder(cell), None if cell.after is None else self.run_folder(cell.after))

    def warn_of_other_archives(self, study: Study) -> None:
        """Warn of every archive without a single cell of the study: another study's file, or renamed methods."""
        cells = [*study.cells(), *(cell for group in study.groups for cell in group.cells)]
        keys, digests = {cell.key for cell in cells}, {cell.digest for cell in cells}
        for path, runs in self._runs.items():
            if not any(key in keys or digest in digests for key, digest in runs):
                example = f", such as {min(runs)[0]}" if runs else ""
                warnings.warn(
                    f"none of the {len(runs)} cells of {path} is of the study {study.title!r}{example}: none of them "
                    "counts. Is it another study's file, or were methods renamed?",
                    stacklevel=2,
                )

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
            same = _configuration(folder / CONFIG) == self.config(cell)
            (folder / _STARTED).unlink()
            if same:
                _write_note(folder / _STARTED, {"digest": cell.digest, "seconds": 0.0})
            return 0.0 if same else None
        return note["seconds"] if note["digest"] == cell.digest else None

    def has_finished_run(self, cell: Cell) -> bool:
        """Whether the run in the cell's folder came to its end, and only the note of it is missing."""
        try:
            return unfinished_run(RunResults.from_file(self.folder(cell)), all_tasks=True) is None
        except (ValueError, FileNotFoundError):
            return False

    def finish(self, cell: Cell, seconds: float, threads: int | None) -> None:
        """Mark a cell as finished.

        Raises:
            ValueError: its results are not whole.
        """
        if reason := unfinished_run(RunResults.from_file(self.folder(cell)), all_tasks=True):
            raise ValueError(f"{cell.key}: the run ended, and its results are not whole: {reason}.")
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
        """Whether a process is running the cell; nothing is written for one that nobody has begun."""
        if not self.folder(cell).is_dir():
            return False
        try:
            lock = self.lock(cell)
        except (OSError, NotImplementedError):  # a store that can only be read: nobody runs in it from here
            return False
        if lock is not None:
            lock.release()
        return lock is None

    def archive(self, cells: Iterable[Cell], path: str | PathLike[str]) -> int:
        """Write the finished cells into one file of JSON lines, beside what it already holds.

        The events that tell of single layers are left out, and the folder of the store; what a report shows is kept.
        A cell of another configuration stays beside the one that has its name now.

        Returns:
            The number of cells in the file.

        Raises:
            ValueError: the file has other results of a run.
        """
        path = Path(path)
        held = _read_archive(path) if path.exists() else {}
        for cell in cells:
            mark = self._found(cell)
            if mark is not None:
                events = mark.get("events") or read_results(self._of(mark))
                short = [self._portable(event) for event in events if event["event"] not in _LONG_EVENTS]
                line = {**mark, "events": short}
                _check_alike(held.setdefault((mark["key"], mark["digest"]), line), line, str(path), "the store")
        write_text(path, "".join(json.dumps(held[run]) + "\n" for run in sorted(held)))
        return len(held)

    def _portable(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event without the place of the store on this machine."""
        command = event.get("command")
        return {**event, "command": command.replace(f"{self.root}/", "")} if isinstance(command, str) else event

    def _found(self, cell: Cell) -> dict[str, Any] | None:
        mark = (
            self._in_folder(cell)
            or self._archived.get((cell.key, cell.digest))
            or self._by_digest.get(cell.digest)
            or self._by_key.get(cell.key)
        )
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

    def _results(self, mark: Mapping[str, Any]) -> RunResults:
        folder = self._of(mark)
        return RunResults(mark.get("events") or read_results(folder), folder / RESULT_FILE)

    def _in_folder(self, cell: Cell) -> dict[str, Any] | None:
        """The mark in the cell's own folder, or in that of the name that it was run under."""
        return self._mark(cell.key) or self._mark(self._keys.get(cell.digest, cell.key))

    def _mark(self, key: str) -> dict[str, Any] | None:
        path = path_inside(self.root, f"{key}/{_MARK}", f"a file of the store {self.root}")
        return _read_note(path, _MARK_KEYS) if path.is_file() else None


def default_store(study: str | PathLike[str]) -> Path:
    """Where the runs of a study file are kept, unless another folder is named."""
    return Path("runs") / Path(study).stem


def store_options(folder: Path, study: str | PathLike[str]) -> list[str]:
    """The option that names the folder of a study's runs on the command line; none where it is the default."""
    return [] if folder.resolve() == default_store(study).resolve() else ["--store", str(folder)]


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


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any], where: str, elsewhere: str) -> None:
    """Check that two results of one run tell the same, so that either can count."""
    first, second = ([{**event, "command": None} for event in line["events"]] for line in (one, other))
    if first != second:  # the command alone may name the folder of the store in another way
        raise ValueError(
            f"{where} and {elsewhere} have different results of {one['key']} for one configuration (digest "
            f"{one['digest']}), of which only one can count; remove the other's line from its file (or its folder)."
        )


def _read_archive(path: Path) -> dict[_Run, dict[str, Any]]:
    """The cells of an archive."""
    held: dict[_Run, dict[str, Any]] = {}
    places: dict[_Run, str] = {}
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
        run = (entry["key"], entry["digest"])
        _check_alike(held.setdefault(run, dict(entry)), entry, places.setdefault(run, where), where)
    return held
