"""Two trees of this repository against each other: the benchmarks of speed and memory, in turns on one machine.

    git worktree add /tmp/old 579a4b7^
    python benchmarks/paired.py --old /tmp/old --new . block -- --shrink 4 --task-samples 16
    python benchmarks/paired.py --old /tmp/old --new . steps -- --hidden 1024 --inner 2752 --rank 32
    python benchmarks/paired.py --old /tmp/old --new . fuse -- --folder /tmp --blocks 2 --hidden 1024 --inner 2752

One run is one process of the tree's own `benchmarks/NAME.py` with the options after `--`. Old and new take turns, and
each goes first in every second pair. A ratio below 1 says that the new tree needs less; its spread is that of the
single pairs, from the smallest to the largest.

On a machine that others use too, `--processor-time` lets `block` and `steps` count the processor time of their process,
and the last row is the processor time of all that a run did, the making of models included.

A tree from before `hpa_lightning/callbacks` was a link needs one: ln -s ../callbacks OLD/hpa_lightning/callbacks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from machine import command, device_name


def of_block(output: str) -> dict[str, float]:
    """Calibration, partition and fusion of one block."""
    result = json.loads(output.splitlines()[-1])
    return {"seconds": result["seconds"], "extra memory, MB": result["bytes"] / 1e6}


def of_steps(output: str) -> dict[str, float]:
    """What the callbacks add to a training step, in their hooks."""
    figures = {}
    for cells in (line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")):
        if cells[0] != "method":
            base = float(next(cell for cell in cells if cell.endswith(" ms")).removesuffix(" ms"))
            figures[f"{cells[0]}, {cells[1]}: ms in its hooks"] = base * float(cells[-2].removesuffix(" %")) / 100
    return figures


def of_fuse(output: str) -> dict[str, float]:
    """The `fuse` command, and where it was asked for the run from saved diagonals."""
    figures = {}
    for name, seconds, _, memory in re.findall(
        r"^\| \| (fuse.*?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) GB", output, re.M
    ):
        figures[f"{name}: seconds"] = float(seconds)
        figures[f"{name}: peak memory, GB"] = float(memory)
    return figures


BY_PROCESSOR_TIME = """
import os, runpy, sys, time
time.perf_counter = time.process_time
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

READERS: dict[str, tuple[list[str], Callable[[str], dict[str, float]]]] = {
    "block": (["--only", "ours"], of_block),
    "steps": ([], of_steps),
    "fuse": ([], of_fuse),
}


def run(tree: Path, name: str, options: list[str], processor_time: bool) -> dict[str, float]:
    """One run of the tree's benchmark: its figures, the most memory that its process held, its processor time."""
    extra, read = READERS[name]
    start = ["-c", BY_PROCESSOR_TIME] if processor_time else []
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with tempfile.TemporaryFile("w+") as output:
        arguments = [sys.executable, *start, str(tree / "benchmarks" / f"{name}.py"), *options, *extra]
        process = subprocess.Popen(arguments, stdout=output, env=environment, cwd=tree)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit status {process.returncode}.")
    figures = read(text)
    if not figures:
        raise SystemExit(f"{' '.join(arguments)} printed no figures that are known here:\n{text}")
    seconds = usage.ru_utime + usage.ru_stime
    return figures | {"peak memory of the process, GB": usage.ru_maxrss / 1e6, "processor time in all, s": seconds}


def require_own(tree: Path) -> None:
    """Each tree must run its own code, not an installed one."""
    code = "import hpa_lightning, hpa_lightning.callbacks as c; print(hpa_lightning.__file__); print(c.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tree)
    paths = done.stdout.split()
    if len(paths) != 2 or not all(Path(path).resolve().is_relative_to(tree) for path in paths):
        raise SystemExit(
            f"{tree} does not run its own code: {paths or done.stderr}. See the end of --help's first part."
        )


def commit(tree: Path) -> str:
    """The commit that is checked out in a tree."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=tree)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--processor-time", action="store_true", help="on a machine that others use")
    parser.add_argument("name", choices=READERS)
    parser.add_argument("options", nargs="*", help="of the benchmark, after --")
    options = parser.parse_args()
    trees = [tree.resolve() for tree in (options.old, options.new)]
    for tree in trees:
        require_own(tree)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `timeout`
    runs: list[list[dict[str, float]]] = [[], []]
    try:
        for number in range(options.pairs):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                runs[which].append(run(trees[which], options.name, options.options, options.processor_time))
                print(f"pair {number + 1}, {('old', 'new')[which]}: {runs[which][-1]}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("Interrupted: the table is of the pairs that are complete.", file=sys.stderr)
    pairs = min(map(len, runs))
    if not pairs:
        raise SystemExit("No pair is complete.")
    print(f"\n{device_name(torch.device('cpu'))}; old {commit(trees[0])}, new {commit(trees[1])}; {pairs} pairs")
    print(f"{command()}\n")
    print("| figure | old, median | new, median | ratio of the medians | of the smallest | of single pairs |")
    print("|---|---|---|---|---|---|")
    for figure in runs[0][0]:
        old, new = ([one[figure] for one in side[:pairs]] for side in runs)
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        before, after = statistics.median(old), statistics.median(new)
        print(
            f"| {figure} | {before:.3g} | {after:.3g} | {after / before:.3f} | {min(new) / min(old):.3f} | "
            f"{min(ratios):.3f} to {max(ratios):.3f} |"
        )


if __name__ == "__main__":
    main()
