"""Disk full, read-only and permission denied at every write: is the error clear, and is what was there still there?

    sudo python benchmarks/reliability/disk.py                 all writers, as a table
    sudo python benchmarks/reliability/disk.py report judge

Root mounts a small file system in memory; every write is made as the user `nobody`. The disk is full to the last page,
or has room for a quarter, a half and nine tenths of what is to be written. `fuse` looks at what room there is before it
writes: for it the disk becomes full after that look as well ("taken"), up to the last bytes. For each writer: an
artefact is made, the disk is spoilt, it is made again (or, where an output may not exist, another one), the disk is
mended, it is made again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from hpa_lightning.callbacks import CalibrationSettings
from hpa_lightning.callbacks.checkpoint_files import write_whole_checkpoints
from hpa_lightning.cli import main as command
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.modules import NanoModule
from hpa_lightning.results.predictions import prediction_file, write_rows
from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter
from hpa_lightning.study import Cell, Store

NOBODY = 65534
SIZE = 96 * 2**20
SHARES = (0.0, 0.25, 0.5, 0.9)
TAKEN = (0.0, 0.5, 0.99, 1.0, 1.003, *(round(1.005 + step / 4000, 5) for step in range(12)))
LEFTOVER = (".partial", ".unfinished")
"""What a failed write may leave beside; the next one takes it away or goes on from it."""


def sample_run(folder: Path) -> None:
    """A finished run of two tasks with answers, as `TaskEvaluation` writes it."""
    sets = [("one", "task"), ("two", "task"), ("harmful", "safety")]
    writer = ResultWriter(folder / RESULT_FILE)
    described = [{"name": name, "kind": kind} for name, kind in sets]
    writer.write({"event": "run", "method": "M", "seed": 0, "tasks": ["one", "two"], "sets": described})
    for step in range(-1, 2):
        for name, kind in sets:
            metric = "attack_success_rate" if kind == "safety" else "exact_match"
            score = {"set": name, "kind": kind, "metric": metric, "score": 0.5, "n": 50}
            writer.write({"event": "score", "step": step, "after": None, **score})
            rows = [{"id": str(i), "prompt": f"question {i} " * 20, "response": "I cannot help."} for i in range(50)]
            write_rows(prediction_file(folder, step, name), rows)


class Writers:
    """Everything that the package writes, each as a function of the folder to write to and of how often it was called.

    Args:
        inputs: a folder for what is read.
    """

    #: Those that refuse an output that exists: there is nothing of before that could be spoilt but its absence.
    new_output = ("judge", "export", "fuse")
    #: Those that look at the room that there is before they write.
    look_first = ("fuse",)

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs
        self.module = NanoModule()
        self.records = NanoDataModule(seed=0).tasks[0].train[:4]  # type: ignore[index]
        sample_run(inputs / "run")
        self.module.export(inputs / "before")
        with torch.no_grad():
            for name, parameter in self.module.model.named_parameters():
                if "_proj" in name:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        self.module.export(inputs / "after")
        self.store = Store(inputs / "store")
        cell = Cell("M", "M", "clean", 0, {})
        shutil.copytree(inputs / "run", self.store.folder(cell))
        self.store.start(cell)
        self.store.finish(cell, 1.0, 1)
        self.cell = cell
        self.trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
        self.trainer.strategy.connect(self.module)
        write_whole_checkpoints(self.trainer)  # as every callback of the package does

    def all(self) -> dict[str, Callable[[Path, int], Any]]:
        """Name -> function of the folder and of the number of the call."""
        run = str(self.inputs / "run")
        return {
            "results": lambda folder, n: ResultWriter(folder / RESULT_FILE).write(
                {"event": "time", "step": n, "phase": "train", "seconds": 1.0, "note": "x" * 20_000}
            ),
            "predictions": lambda folder, n: write_rows(
                prediction_file(folder, 0, "set"), [{"prompt": "p", "response": "r" * 500, "n": n}] * 200
            ),
            "report": lambda folder, n: command(["report", run, "--output", str(folder / "report")]),
            "answers": lambda folder, n: command(["answers", run, "--output", str(folder / "answers.html")]),
            "judge": lambda folder, n: command(["judge", run, "--output", str(folder / "judged")]),
            "archive": lambda folder, n: self.store.archive([self.cell], folder / "study.jsonl"),
            "store": lambda folder, n: Store(folder / "store").start(Cell("M", "M", "clean", n, {})),
            "checkpoint": lambda folder, n: self.trainer.save_checkpoint(folder / "last.ckpt"),
            "export": lambda folder, n: self.module.export(folder / "exported"),
            "fuse": lambda folder, n: fuse_checkpoints(
                self.inputs / "before",
                self.inputs / "after",
                folder / "fused",
                self.records,
                self.records,
                calibration=CalibrationSettings(safety_samples=4, task_samples=4, batch_size=4),
            ),
        }


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of every file, without what a failed write may leave."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        left = any(part.endswith(LEFTOVER) or part.startswith(".") for part in name.parts) or name.name == "ballast"
        if path.is_file() and not left:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """An ordinary user's rights, for files."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def attempt(writer: Callable[[Path, int], Any], folder: Path, number: int) -> str | None:
    """Write as nobody; the error's text, or ``None``."""
    try:
        with as_nobody(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            writer(folder, number)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def spoilt(how: str, disk: Path, folder: Path, size: int) -> Iterator[None]:
    """The disk full but for a share of ``size``, at once or when somebody has looked; read-only; closed to the user."""
    ballast, look = disk / "ballast", shutil.disk_usage

    def fill(*_: Any) -> Any:
        usage = look(disk)
        left = int(float(how.split()[1]) * size)
        with contextlib.suppress(OSError), ballast.open("ab") as file:
            for _ in range((usage.free - left) // 4096):
                file.write(bytes(4096))
        shutil.disk_usage = look
        return usage

    if how.startswith("full"):
        fill()
    elif how.startswith("taken"):
        shutil.disk_usage = fill
    elif how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        closed = [folder, *folder.rglob("*")]
        modes = {path: path.stat().st_mode for path in closed}
        for path in closed:
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        shutil.disk_usage = look
        if how == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        elif how == "denied":
            for path, mode in modes.items():
                path.chmod(mode)
        ballast.unlink(missing_ok=True)


def clear(error: str, how: str, folder: Path) -> bool:
    """Whether the message says what is wrong, in words, and of what file."""
    full = ("No space left", "the disk has")
    words = {"full": full, "taken": full, "read-only": ("Read-only",), "denied": ("denied",)}
    return any(word in error for word in words[how.split()[0]]) and str(folder) in error


def check(name: str, writer: Callable[[Path, int], Any], how: str, disk: Path, new: bool) -> tuple[str, str]:
    """What became of the write (``"ok"`` or what is wrong), and the message."""
    folder = disk / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    (disk / "size").mkdir(exist_ok=True)
    os.chown(disk / "size", NOBODY, NOBODY)
    if error := attempt(writer, disk / "size", 0):
        return f"does not write at all: {error}", ""
    size = sum(path.stat().st_size for path in (disk / "size").rglob("*") if path.is_file())
    shutil.rmtree(disk / "size")
    if not new:
        attempt(writer, folder, 0)
    before = contents(folder)
    with spoilt(how, disk, folder, size):
        error = attempt(writer, folder, 1)
    told = error or ""
    after = contents(folder)
    if error is None and how.startswith(("full", "taken")):
        return "fits", ""
    problems = []
    if error is None:
        problems.append("NO ERROR")
    elif not clear(error, how, folder):
        problems.append("UNCLEAR")
    if after != before:
        changed = sorted({*before, *after} - {key for key in before if after.get(key) == before[key]})
        problems.append(f"CHANGED {changed[:3]}")
    if again := attempt(writer, folder, 1):
        problems.append(f"NOT MENDED: {again[:100]}")
    return ", ".join(problems) or "ok", told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("writers", nargs="*", help="default: all")
    parser.add_argument("--messages", action="store_true", help="print every message")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("disk.py mounts a file system and gives up its rights for each write: run it as root.")
    ways = [*(f"full {share}" for share in SHARES), "read-only", "denied"]
    bad = tried = 0
    with tempfile.TemporaryDirectory() as place:
        inputs, disk = Path(place) / "inputs", Path(place) / "disk"
        inputs.mkdir()
        disk.mkdir()
        Path(place).chmod(0o755)
        writers = Writers(inputs)
        for (
            name,
            writer,
        ) in writers.all().items():  # nobody may not be allowed to read the modules that are still to load
            if not options.writers or name in options.writers:
                with contextlib.redirect_stdout(io.StringIO()):
                    writer(inputs / "warm", 0)
        subprocess.run(["chmod", "-R", "a+rX", str(inputs)], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=777", "tmpfs", str(disk)], check=True)
        try:
            print(f"| writer | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 1)}")
            for name, writer in writers.all().items():
                if options.writers and name not in options.writers:
                    continue
                row = []
                taken = [f"taken {share}" for share in TAKEN] if name in writers.look_first else []
                for how in [*ways, *taken]:
                    result, told = check(name, writer, how, disk, name in writers.new_output)
                    row.append(result)
                    tried += result != "fits"
                    bad += result not in ("ok", "fits")
                    if told and (options.messages or result != "ok"):
                        print(f"  {name}, {how}: {result}: {told[:300]}", flush=True)
                print(f"| {name} | {' | '.join(row[: len(ways)])} |", flush=True)
                if taken:
                    print(
                        f"  {name}: " + ", ".join(map(": ".join, zip(taken, row[len(ways) :], strict=True))), flush=True
                    )
        finally:
            subprocess.run(["umount", str(disk)], check=False)
    print(f"{tried} writes failed as they had to, {bad} of them not as they should.")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
