"""Generated inputs through every reader and every function of the core: faults, the longest input, memory.

    python benchmarks/reliability/inputs.py                      # 100,000 inputs, some minutes
    python benchmarks/reliability/inputs.py --inputs 2000 --seed 7
    python benchmarks/reliability/inputs.py --only conversations fuse

Readers get mutated files of their formats (tests/support/fuzz_readers.py), functions get tensors of any shape, dtype,
layout, scale and device (tests/support/fuzz_functional.py): each returns what it promises or raises its documented
error, short. A fault is anything else, or an input that takes longer than a minute. The suite runs some thousands of
the same.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import torch
from support import fuzz_functional
from support import fuzz_readers as fuzz

LIMIT = 60
"""Seconds for one input."""
CHUNK = 50


class HangError(BaseException):
    """Raised where the time is over; no `except Exception` catches it."""


def hang(number: int, frame: Any) -> None:
    raise HangError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of readers and functions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, hang)
    every = [
        (kind, name) for kind, cases in (("reader", fuzz.CASES), ("function", fuzz_functional.CASES)) for name in cases
    ]
    chosen = [one for one in every if not options.only or one[1] in options.only]
    each = -(-options.inputs // len(chosen))
    tried, faults, seconds = Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, str] = {}
    slowest: dict[str, float] = {"reader": 0.0, "function": 0.0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for kind, name in chosen:
        run: Any = (fuzz if kind == "reader" else fuzz_functional).run
        for start in range(0, each, CHUNK):
            count, began = min(CHUNK, each - start), time.monotonic()
            signal.alarm(LIMIT)
            try:
                found = run(name, count, 1_000_000 * options.seed + start)
            except HangError:
                found = [(f"seed {1_000_000 * options.seed + start}", f"{count} inputs take over {LIMIT} s")]
            signal.alarm(0)
            took = time.monotonic() - began
            tried[kind] += count
            seconds[kind] += took
            slowest[kind] = max(slowest[kind], took / count)
            for given, text in found:
                faults[kind] += 1
                examples.setdefault(f"{name}: {text[:150]}", str(given)[:300])
    for fault, given in examples.items():
        print(f"{fault}\n    by {given}")
    print("| | inputs | of each | faults | inputs a second | slowest 50, a second each |\n|---|---|---|---|---|---|")
    for kind, what in (("reader", "readers"), ("function", "functions of the core")):
        names = sum(one == kind for one, _ in chosen)
        if names:
            rate = tried[kind] / seconds[kind]
            print(
                f"| {names} {what} | {tried[kind]} | {each} | {faults[kind]} | {rate:.0f} | {1 / slowest[kind]:.0f} |"
            )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nseed {options.seed}; peak memory {before:.0f} MiB before the first input, {after:.0f} MiB after the last")
    raise SystemExit(bool(faults.total()))


if __name__ == "__main__":
    main()
