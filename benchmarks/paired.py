"""Two trees of this repository against each other: the benchmarks of speed and memory, in turns on one machine.

    git worktree add /tmp/old 579a4b7^
    python benchmarks/paired.py --old /tmp/old --new . block steps fuse

Small sizes, on a CPU. Each tree has one process, which runs its own `benchmarks/NAME.py` once to warm up and then when
its turn comes; old and new go first in turns. Seconds are the processor time of that process (one thread), which counts
the same on a machine that others use; memory is the most that it holds in a run. A ratio below 1 says that the
new tree needs less; its spread is that of the single pairs, from the smallest to the largest.

A tree from before `hpa_lightning/callbacks` was a link needs one: ln -s ../callbacks OLD/hpa_lightning/callbacks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import command, device_name

Run = Callable[[], dict[str, float]]


def block(folder: Path) -> Run:
    """Calibration, partition and fusion of one block of an eighth of LLaVA-7B's widths."""
    import block as benchmark
    from machine import memory_peak

    options = argparse.Namespace(device="cpu", dtype="float32", safety_samples=8, task_samples=16, tokens=640, shrink=8)

    def run() -> dict[str, float]:
        result = benchmark.measure(options, "ours")
        return {"block: s": result["seconds"], "block: peak memory, MB": memory_peak(torch.device("cpu")) / 1e6}

    return run


def steps(folder: Path) -> Run:
    """What the callbacks add to a training step, in their hooks, and the memory of the fit."""
    import steps as benchmark
    from machine import memory_now, memory_peak

    options = argparse.Namespace(
        device="cpu", dtype="float32", hidden=512, inner=1376, rank=32, samples=1, tokens=32, pairs=4, blocks=1
    )
    options.directions, options.form, options.share, options.budget = 64, "sketch", "output", None

    def run() -> dict[str, float]:
        figures, peaks = {}, []
        for method, tuning in product(("in_training", "null_space"), ("lora", "full")):
            memory_now(torch.device("cpu"))  # the peak counts from here
            turns, _ = benchmark.run(method, tuning, options, str(folder))
            inside = [seconds for on, _, seconds in turns.steps if on]
            figures[f"{method}, {tuning}: ms in the hooks of a step"] = 1000 * statistics.median(inside)
            peaks.append(memory_peak(torch.device("cpu")))
        figures["steps: peak memory, MB"] = max(peaks) / 1e6
        return figures

    return run


def fuse(folder: Path) -> Run:
    """`fuse_checkpoints` on a small LLaVA with an adapter."""
    import shutil
    import time

    from llava import configuration, write_adapter, write_checkpoint, write_data
    from machine import memory_now, memory_peak

    from hpa_lightning.callbacks import CalibrationSettings
    from hpa_lightning.fuse import fuse_checkpoints

    config = configuration(2, 512, 1376, 2)
    write_checkpoint(folder / "before", config)
    write_adapter(folder / "after", config, 32)
    safety = write_data(folder, 4, "safety", "I am sorry, I cannot help with that.")
    task = write_data(folder, 8, "task", "A field of colours.")

    def run() -> dict[str, float]:
        memory_now(torch.device("cpu"))  # the peak counts from here
        start = time.perf_counter()
        fuse_checkpoints(
            folder / "before",
            folder / "after",
            folder / "fused",
            safety,
            task,
            calibration=CalibrationSettings(4, 8, 4),
        )
        seconds = time.perf_counter() - start
        shutil.rmtree(folder / "fused")
        return {"fuse: s": seconds, "fuse: peak memory, MB": memory_peak(torch.device("cpu")) / 1e6}

    return run


BENCHMARKS = {"block": block, "steps": steps, "fuse": fuse}


def work(tree: Path, name: str) -> None:
    """One tree's process: a run for each line that comes in."""
    import logging
    import time
    import warnings

    import hpa_lightning.callbacks

    where = Path(str(hpa_lightning.callbacks.__file__)).resolve()
    if not where.is_relative_to(tree):
        raise SystemExit(f"{tree} runs the code of {where}. Is its hpa_lightning/callbacks a link?")
    time.perf_counter = time.process_time
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the benchmark prints is no answer
    with TemporaryDirectory() as folder:
        run = BENCHMARKS[name](Path(folder))
        for _ in sys.stdin:
            print(json.dumps(run()), file=answers, flush=True)


class Worker:
    """The process of a tree."""

    def __init__(self, tree: Path, name: str) -> None:
        # The tree's own benchmarks, and this file for both.
        path = os.pathsep.join(map(str, (tree, tree / "benchmarks", Path(__file__).parent)))
        code = "import pathlib, sys; import paired; paired.work(pathlib.Path(sys.argv[1]), sys.argv[2])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(tree), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name != "block" else None,
            text=True,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def run(self) -> dict[str, float]:
        pipes: Any = self.process
        print("run", file=pipes.stdin, flush=True)
        line = pipes.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with {self.process.wait()}.")
        figures: dict[str, float] = json.loads(line)
        return figures

    def close(self) -> None:
        """End the process, which removes its files, when its run is over."""
        pipes: Any = self.process
        pipes.stdin.close()
        self.process.wait()


def commit(tree: Path) -> str:
    """The commit that is checked out in a tree."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=tree)
    return done.stdout.strip() or "unknown"


def compare(trees: list[Path], name: str, pairs: int) -> None:
    """Run one benchmark in pairs and print its rows."""
    workers = [Worker(tree, name) for tree in trees]
    for worker in workers:
        worker.run()
    runs: list[list[dict[str, float]]] = [[], []]
    try:
        for number in range(pairs):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                runs[which].append(workers[which].run())
                print(f"{name}, pair {number + 1}, {('old', 'new')[which]}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # the rows are of the pairs that are complete
        pairs = min(map(len, runs))
    for worker in workers:
        worker.close()
    if pairs == 0:
        raise SystemExit(f"{name}: no pair is complete.")
    for figure in runs[0][0]:
        old, new = ([one[figure] for one in side[:pairs]] for side in runs)
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        before, after = statistics.median(old), statistics.median(new)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"| {figure}, {pairs} pairs | {before:.3g} | {after:.3g} | {after / before:.3f} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("names", nargs="+", choices=BENCHMARKS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `timeout`
    trees = [tree.resolve() for tree in (options.old, options.new)]
    about = f"old {commit(trees[0])}, new {commit(trees[1])}"
    print(f"\n{device_name(torch.device('cpu'))}; {about}\n{command()}\n")
    print("| figure | old, median | new, median | ratio of the medians | of single pairs |\n|---|---|---|---|---|")
    for name in options.names:
        compare(trees, name, options.pairs)


if __name__ == "__main__":
    main()
