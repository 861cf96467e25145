"""`hpa-lightning fuse` on a random LLaVA-1.5 checkpoint: time against a plain copy of the same files, and memory.

    python benchmarks/fuse.py --folder /scratch                             # 7B, 32 blocks: 28 GB of disk
    python benchmarks/fuse.py --folder /scratch --blocks 4 --task-samples 16
    python benchmarks/fuse.py --folder /dev/shm --phases                    # a GPU and a RAM disk

The tuned model is a LoRA adapter of rank 128 on every linear layer of the decoder blocks. A second run, from the saved
diagonals, shows what fusing alone costs. `--phases` runs the first once more, in this process, and says where the time
goes; it waits for the device at the end of every phase.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from llava import configuration, write_adapter, write_checkpoint, write_data
from machine import command, commit, device_name, host_memory, memory_now, memory_peak, synchronise

from hpa_lightning.callbacks import CalibrationSettings
from hpa_lightning.fuse import fuse_checkpoints, fusion_calibration, methods
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.diagonals import FusionOutput


def timed(function: Callable[[], object]) -> float:
    """Seconds, until everything is on the disk."""
    os.sync()  # what was written before does not count
    start = time.perf_counter()
    function()
    os.sync()
    return time.perf_counter() - start


def run(arguments: list[str]) -> int:
    """Run a command and return the most bytes of memory that it held (not what this process held when it forked)."""
    process, peak = subprocess.Popen(arguments), 0
    while process.poll() is None:
        with suppress(OSError, StopIteration):  # it has just ended
            peak = max(peak, host_memory("VmHWM", process.pid))
        time.sleep(0.1)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with exit status {process.returncode}.")
    return peak


class Phases:
    """Seconds of each phase, without those of the phases inside it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def timing(self, owner: Any, name: str, phase: str) -> None:
        """Time every call of a function."""
        function = getattr(owner, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            with self.phase(phase):
                return function(*arguments, **settings)

        setattr(owner, name, call)


def phases(before: Path, after: Path, output: Path, options: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Fuse in this process; return the seconds of each phase and the most bytes held on the device."""
    device = torch.device(options.device)
    watch = Phases(device)
    for owner, name, phase in (
        (Checkpoint, "tensor", "reading weights"),
        (FusionOutput, "copy_weights", "copying files"),
        (FusionOutput, "write_part", "selecting, fusing, writing"),
        (fusion_calibration, "visit_inputs", "forward passes"),
        (methods.HessianAccumulator, "update", "sums"),
        (methods, "shared_inverse_diagonals", "factors"),
        (fusion_calibration.MLLMCollator, "train", "pictures and tokens"),
    ):
        watch.timing(owner, name, phase)
    held = memory_now(device)
    with watch.phase("the rest"):
        fuse_checkpoints(
            before,
            after,
            output,
            before.parent / "safety.json",
            before.parent / "task.json",
            calibration=CalibrationSettings(options.safety_samples, options.task_samples, options.batch_size),
            device=device,
        )
    return watch.seconds, memory_peak(device) - held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are made; removed at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--tower-blocks", type=int, default=24)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--safety-samples", type=int, default=8)
    parser.add_argument("--task-samples", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--once", action="store_true", help="no run from the saved diagonals")
    parser.add_argument("--phases", action="store_true", help="a further run that says where the time goes")
    options = parser.parse_args()
    root = options.folder / "fuse_benchmark"
    root.mkdir()
    try:
        measure(root, options)
    finally:
        shutil.rmtree(root)


def measure(root: Path, options: argparse.Namespace) -> None:
    """Make the models, run the command and print the tables, each as soon as it is known."""
    config = configuration(options.blocks, options.hidden, options.inner, options.tower_blocks)
    size = write_checkpoint(root / "before", config, options.device)
    write_adapter(root / "after", config, options.rank, options.device)
    safety = write_data(root, options.safety_samples, "safety", "I am sorry, I cannot help with that.")
    task = write_data(root, options.task_samples, "task", "A field of colours.")
    print(f"written: {size / 1e9:.1f} GB of weights", file=sys.stderr, flush=True)
    copy = math.inf
    for _ in range(2):
        copy = min(copy, timed(lambda: shutil.copytree(root / "before", root / "copy")))
        shutil.rmtree(root / "copy")
    arguments = [sys.executable, "-m", "hpa_lightning.cli", "fuse", "--device", options.device]
    arguments += ["--before", str(root / "before"), "--after", str(root / "after")]
    arguments += ["--safety-samples", str(options.safety_samples), "--task-samples", str(options.task_samples)]
    data = ["--safety-data", str(safety), "--task-data", str(task), "--batch-size", str(options.batch_size)]
    diagonals = root / "diagonals.safetensors"
    print(f"\n{device_name(torch.device(options.device))}, commit {commit()}\n{command()}\n")
    print("| weights | run | seconds | copies of the files | peak memory of the host |\n|---|---|---|---|---|")
    print(f"| {size / 1e9:.1f} GB | copy | {copy:.1f} | 1 | |", flush=True)
    runs = [("fuse", [*data, "--save-diagonals", str(diagonals)])]
    runs += [] if options.once else [("fuse, from saved diagonals", ["--diagonals", str(diagonals)])]
    for name, given in runs:
        peaks: list[int] = []
        command_line = [*arguments, *given, "--output", str(root / "fused")]
        seconds = timed(lambda line=command_line, peaks=peaks: peaks.append(run(line)))
        shutil.rmtree(root / "fused")
        print(f"| | {name} | {seconds:.1f} | {seconds / copy:.1f} | {peaks[0] / 1e9:.1f} GB |", flush=True)
    if options.phases:
        seconds_of, peak = phases(root / "before", root / "after", root / "fused", options)
        whole = sum(seconds_of.values())
        print("\n| phase | seconds | share |\n|---|---|---|")
        for name, seconds in sorted(seconds_of.items(), key=lambda item: -item[1]):
            print(f"| {name} | {seconds:.1f} | {100 * seconds / whole:.0f} % |")
        if options.device.startswith("cuda"):
            print(f"\nPeak memory of the device: {peak / 1e9:.2f} GB.")


if __name__ == "__main__":
    main()
