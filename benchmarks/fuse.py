"""`hpa-lightning fuse` on a random LLaVA-1.5 checkpoint: time against a plain copy of the same files, and memory.

    python benchmarks/fuse.py --folder /scratch                             # 7B, 32 blocks: 28 GB of disk
    python benchmarks/fuse.py --folder /scratch --blocks 4 --task-samples 16

The tuned model is a LoRA adapter of rank 128 on every linear layer of the decoder blocks. A second run, from the saved
diagonals, shows what fusing alone costs.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from llava import configuration, write_adapter, write_checkpoint, write_data
from machine import command, commit, device_name, host_memory


def timed(function: object) -> float:
    """Seconds, until everything is on the disk."""
    os.sync()  # what was written before does not count
    start = time.perf_counter()
    function()  # type: ignore[operator]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are made; removed at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--safety-samples", type=int, default=8)
    parser.add_argument("--task-samples", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    root = options.folder / "fuse_benchmark"
    root.mkdir()
    try:
        config = configuration(options.blocks)
        size = write_checkpoint(root / "before", config)
        write_adapter(root / "after", config, 128)
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
        peaks: list[int] = []
        whole = timed(
            lambda: peaks.append(
                run([*arguments, *data, "--output", str(root / "fused"), "--save-diagonals", str(diagonals)])
            )
        )
        shutil.rmtree(root / "fused")
        alone = timed(
            lambda: peaks.append(run([*arguments, "--output", str(root / "fused"), "--diagonals", str(diagonals)]))
        )
    finally:
        shutil.rmtree(root)
    print(f"\n{device_name(torch.device(options.device))}, commit {commit()}\n{command()}\n")
    print("| weights | copy | fuse | times a copy | from saved diagonals | times a copy | peak memory |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {size / 1e9:.1f} GB | {copy:.0f} s | {whole:.0f} s | {whole / copy:.0f} | {alone:.0f} s "
        f"| {alone / copy:.1f} | {peaks[0] / 1e9:.1f} GB |"
    )


if __name__ == "__main__":
    main()
