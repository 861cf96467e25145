"""Runs the cells of a study, several at a time, each as a process of its own."""

from __future__ import annotations

import heapq
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from hpa_lightning.allowed_imports import LIMIT
from hpa_lightning.checkpoints import newest_checkpoint
from hpa_lightning.files import write_text
from hpa_lightning.results.result_file import RESULT_FILE
from hpa_lightning.run_folder import IN_USE, INITIAL_SCORES
from hpa_lightning.study.cell_progress import CellProgress, TaskSeconds, task_seconds
from hpa_lightning.study.grid import Cell
from hpa_lightning.study.store import CONFIG, Store

_LOG = "log.txt"
_INITIAL = "initial-scores"
_POLL_SECONDS = 0.5
_STATUS_SECONDS = 60.0


@dataclass
class _Process:
    cell: Cell
    process: subprocess.Popen[Any]
    lock: FileLock
    started: float
    slot: int
    progress: CellProgress


class Interrupted(KeyboardInterrupt):
    """The study was asked to stop; what runs has been stopped, what is finished is kept."""


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
    packages: Collection[str] | None = None,
) -> list[Cell]:
    """Run every cell that is not finished, ``jobs`` at a time.

    Each cell is ``hpa-lightning fit --config FOLDER/config.in.yaml`` in a process of its own, with its output in
    ``log.txt``. The processor's cores are divided among the jobs (one OpenMP thread each if there are as many jobs as
    cores; more threads than cores make every step wait); with GPUs each job sees one of them. A cell that was cut off
    continues from its newest checkpoint, if its configuration writes any and has not changed, and otherwise starts
    again. Several of these may work on one store at once; each ends when all cells are finished or have failed: a cell
    that another process is running is waited for, and taken over if that process ends without finishing it. Cells that
    start from the same model score it once (:mod:`hpa_lightning.callbacks.shared_scores`). A cell that fails is
    reported, and the others continue.

    Args:
        cells: in the order in which they are started.
        store: keeps the results.
        jobs: processes at a time; by default one for each GPU, or for each core.
        say: gets the lines of progress.
        packages: names of the packages whose classes the cells may name, wherever they name them; any when ``None``.

    Returns:
        The cells that failed.

    Raises:
        ValueError: ``jobs`` below 1, a cell's results belong to another configuration, or a cell starts with one that
            is neither finished nor among the cells.
        Interrupted: on Ctrl-C or SIGTERM, after the running cells were stopped.
    """
    gpus = _gpus()
    cores = _cores()
    jobs = (len(gpus) or cores) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; expected at least 1.")
    threads = max(1, cores // jobs)
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment[INITIAL_SCORES] = str((store.root / _INITIAL).resolve())
    if packages is not None:
        environment[LIMIT] = ",".join(packages)
    unfinished = [cell for cell in cells if store.finished(cell) is None]
    # A run that others start with must be here whole, though its results may be archived.
    needed = {cell.digest: cell for item in unfinished for cell in _before(item)}
    again = {digest: cell for digest, cell in needed.items() if store.run_folder(cell) is None}
    if absent := [cell for digest, cell in again.items() if digest not in {cell.digest for cell in cells}]:
        raise ValueError(
            f"{absent[0].key}, which another cell starts with, is neither finished in {store.root} nor one of "
            "the cells to run; run it too."
        )
    waiting = deque(cell for cell in cells if cell in unfinished or cell.digest in again)
    elsewhere: deque[Cell] = deque()  # run by other processes
    say(
        f"{len(cells)} cells, {len(cells) - len(waiting)} finished; {len(waiting)} to run, {jobs} at a time with "
        + (f"{len(gpus)} GPUs." if gpus else f"{threads} threads each.")
    )
    if not gpus and any(map(_in_bfloat16, waiting)) and _is_slow_in_it():
        say("This processor is slow in bfloat16, in which cells compute; they take longer (docs/strategies.md).")
    progress = _Progress(cells, store, jobs)
    running: list[_Process] = []
    failed: list[Cell] = []
    last_status = time.monotonic()
    with _termination_as_interrupt():
        try:
            while waiting or running or elsewhere:
                for _ in range(len(elsewhere)):
                    cell = elsewhere.popleft()
                    (elsewhere if store.is_locked(cell) else waiting).append(cell)
                lost = {cell.digest for cell in failed}
                for cell in [cell for cell in waiting if cell.after is not None and cell.after.digest in lost]:
                    waiting.remove(cell)
                    failed.append(cell)
                    say(f"{cell.key}: FAILED, since the run that it starts with has failed.")
                while len(running) < jobs and (ready := _next(waiting, store)) is not None:
                    cell = ready
                    slot = min(set(range(jobs)) - {job.slot for job in running})
                    waiting.remove(cell)
                    gpu = gpus[slot % len(gpus)] if gpus else None
                    started = _start(cell, store, threads, gpu, slot, environment, progress.times(cell), say)
                    if started is None:
                        say(f"{cell.key}: another process is running it; it is waited for.")
                        elsewhere.append(cell)
                    elif isinstance(started, str):
                        say(started)
                    else:
                        running.append(started)
                time.sleep(_POLL_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    seconds = time.monotonic() - job.started
                    spent = store.add_time(job.cell, seconds)
                    error = _end(job, store, spent, None if gpus else threads)
                    if error is None:
                        progress.ended(job.cell, spent, store)
                        figures, left = _figures(job.cell, store), progress.line(waiting, running, len(elsewhere))
                        say(f"{job.cell.key}: {figures}, {spent:.0f} s. {left}")
                    elif IN_USE in error:  # started by a runner that was killed before its fit had locked the folder
                        say(f"{job.cell.key}: another process is running it; it is waited for.")
                        elsewhere.append(job.cell)
                    else:
                        failed.append(job.cell)
                        say(f"{job.cell.key}: FAILED, {error}")
                if running and time.monotonic() - last_status > _STATUS_SECONDS:
                    last_status = time.monotonic()
                    say("  " + "; ".join(f"{job.cell.key} {job.progress.said(last_status)}" for job in running))
        except KeyboardInterrupt:
            for job in running:
                _stop(job, store)
            say(f"Interrupted; {len(running)} running cells were stopped. The same command continues from here.")
            raise Interrupted from None
    return failed


def _before(cell: Cell) -> Iterator[Cell]:
    """The cells that a cell starts with, directly or not."""
    while cell.after is not None:
        cell = cell.after
        yield cell


def _next(waiting: Iterable[Cell], store: Store) -> Cell | None:
    """The first cell whose start is in the store."""
    return next((cell for cell in waiting if cell.after is None or store.run_folder(cell.after) is not None), None)


def _start(
    cell: Cell,
    store: Store,
    threads: int,
    gpu: str | None,
    slot: int,
    environment: Mapping[str, str],
    before: Sequence[TaskSeconds],
    say: Callable[[str], None],
) -> _Process | str | None:
    """Start a cell's process, or say why it needs none; ``None`` if another process is running it."""
    lock = store.lock(cell)
    if lock is None:
        return None
    if store.run_folder(cell) is not None:
        lock.release()
        return f"{cell.key}: another process has finished it."
    folder = store.start(cell)
    checkpoint, torn = newest_checkpoint([folder])
    for line in torn:
        say(f"{cell.key}: {line}")
    if checkpoint is None and store.has_finished_run(cell):
        store.finish(cell, store.add_time(cell, 0.0), None if gpu else threads)  # killed before it was noted
        lock.release()
        return f"{cell.key}: had been finished."
    config = folder / CONFIG
    write_text(config, yaml.safe_dump(store.config(cell), sort_keys=False))
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    with (folder / _LOG).open("a") as log:
        process = subprocess.Popen(
            _command(config, checkpoint),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, **own},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops its children in order
        )
    progress = CellProgress(store.folder(cell) / RESULT_FILE, before)
    return _Process(cell, process, lock, time.monotonic(), slot, progress)


def _command(config: Path, checkpoint: Path | None) -> list[str]:
    command = [sys.executable, "-m", "hpa_lightning.cli", "fit", "--config", str(config)]
    return command if checkpoint is None else [*command, "--ckpt_path", str(checkpoint)]


def _end(job: _Process, store: Store, seconds: float, threads: int | None) -> str | None:
    """Mark the cell as finished, or say why it is not."""
    try:
        if job.process.returncode != 0:
            log = store.folder(job.cell) / _LOG
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            return f"exit status {job.process.returncode}: {lines[-1] if lines else 'no output'} (see {log})"
        try:
            store.finish(job.cell, seconds, threads)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return None
    finally:
        job.lock.release()


def _stop(job: _Process, store: Store) -> None:
    job.process.terminate()
    try:
        job.process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        job.process.kill()
        job.process.wait()
    store.add_time(job.cell, time.monotonic() - job.started)
    job.lock.release()


def until_done(running: Sequence[float], waiting: Sequence[float], jobs: int) -> float:
    """Seconds until all is done if what waits is started in its order, each where a job is free first.

    Args:
        running: what is left of those that run, one value a job.
        waiting: what the others will take.
        jobs: at a time.

    >>> until_done([60.0], [], 2), until_done([60.0, 10.0], [30.0, 30.0], 2)
    (60.0, 70.0)
    """
    free = [*running, *[0.0] * (jobs - len(running))]
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


class _Progress:
    """How long the rest will take, from what has been run: a method's own mean time, or all methods'."""

    def __init__(self, cells: Sequence[Cell], store: Store, jobs: int) -> None:
        self._jobs = jobs
        self._seconds: dict[str, list[float]] = {}
        self._times: dict[tuple[str, str], list[TaskSeconds]] = {}
        for cell in cells:
            finished = store.finished(cell)
            if finished is not None:
                self.ended(cell, finished.seconds, store)

    def ended(self, cell: Cell, seconds: float, store: Store) -> None:
        self._seconds.setdefault(cell.method, []).append(seconds)
        if (file := store.folder(cell) / RESULT_FILE).is_file():  # an archive may be another machine's
            self._times.setdefault((cell.condition, cell.method), []).append(task_seconds(file))

    def times(self, cell: Cell) -> list[TaskSeconds]:
        """What the tasks of finished cells took that differ in their seed alone."""
        return list(self._times.get((cell.condition, cell.method), ()))

    def line(self, waiting: Sequence[Cell], running: Sequence[_Process], elsewhere: int) -> str:
        """What is left; of cells that other processes run it is not known when they end."""
        now = time.monotonic()
        busy = [max(0.0, self._expected(job.cell) - (now - job.started)) for job in running]
        seconds = until_done(busy, [self._expected(cell) for cell in waiting], self._jobs)
        others = f", and {elsewhere} that other processes run" if elsewhere else ""
        return f"{len(waiting) + len(running)} left, about {seconds / 60:.0f} min{others}"

    def _expected(self, cell: Cell) -> float:
        known = self._seconds.get(cell.method) or [value for values in self._seconds.values() for value in values]
        return sum(known) / len(known)


def _figures(cell: Cell, store: Store) -> str:
    finished = store.finished(cell)
    assert finished is not None
    summary = finished.run.summary()
    return ", ".join(f"{name} {100 * summary[name]:.1f}" for name in ("AP", "BWT", "MASR"))


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    import torch

    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


def _in_bfloat16(cell: Cell) -> bool:
    return str((cell.config.get("trainer") or {}).get("precision")).startswith("bf16")


def _is_slow_in_it() -> bool:
    from hpa_lightning.float32_products import bfloat16_is_slow  # imports PyTorch

    return bfloat16_is_slow()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _termination_as_interrupt() -> Any:
    """SIGTERM is handled as Ctrl-C is."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
