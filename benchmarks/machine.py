"""What this machine can do at best: matrix products, Cholesky factorisations, copies. Ceilings for the benchmarks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from hpa_lightning.functional.numerics.matrix_products import product_of_rows


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(function: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """The shortest of several runs, after one that does not count."""
    function()
    synchronise(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def ceilings(device: torch.device, size: int | None = None) -> dict[str, float]:
    """Best rates: products by dtype and the Cholesky factorisation in operations, copies in bytes, per second.

    Args:
        device: whose.
        size: rows and columns of the matrices; by default enough to keep the device busy.
    """
    size = size or (8192 if device.type == "cuda" else 4096)
    rates = {}
    dtypes = [torch.float32, torch.float64] + ([torch.bfloat16] if device.type == "cuda" else [])
    for dtype in dtypes:
        left = torch.randn(size, size, device=device, dtype=dtype)
        seconds = best_seconds(lambda left=left: left @ left, device)
        if dtype == torch.float32:  # oneDNN, where it is twice as fast as MKL, which `@` takes
            seconds = min(seconds, best_seconds(lambda left=left: product_of_rows(left, left), device))
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    square = torch.randn(size, size, device=device, dtype=torch.float64)
    square = square @ square.T + size * torch.eye(size, device=device, dtype=torch.float64)
    rates["cholesky"] = size**3 / 3 / best_seconds(lambda: torch.linalg.cholesky_ex(square), device)
    # Written to: memory that never was has no pages of its own, and is read from the cache.
    source = torch.ones(1 << 28, device=device, dtype=torch.float32)
    target = torch.zeros_like(source)
    rates["copy"] = 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)
    return rates


def device_name(device: torch.device) -> str:
    """The name for tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as file:
        lines = [line.partition(":") for line in file]
    entries = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    kind = "".join(f", {key.removeprefix('cpu ')} {entries[key]}" for key in ("cpu family", "model") if key in entries)
    return f"{entries.get('model name', 'CPU')}{kind}, {torch.get_num_threads()} threads"


def count_processor_time() -> None:
    """Let all seconds of this process be those of the processor, which count the same on a machine that others use."""
    time.perf_counter = time.process_time  # type: ignore[assignment]


def default_dtype(device: str) -> str:
    """What models are tuned in there."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def memory_peak(device: torch.device) -> int:
    """Most bytes that this process has held so far: on the device, or in all on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_memory("VmHWM")


def memory_now(device: torch.device) -> int:
    """Bytes that this process holds; sets the peak back to them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return host_memory("VmRSS")


def host_memory(entry: str, process: int | str = "self") -> int:
    """An entry of a process's memory in Linux's ``/proc``, bytes: ``VmRSS`` now, ``VmHWM`` at its peak."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{entry}:"))


def commit() -> str:
    """The commit that is checked out, with a mark if files differ from it; ``HPA_COMMIT`` where there is no git."""
    if os.environ.get("HPA_COMMIT") or shutil.which("git") is None:
        return os.environ.get("HPA_COMMIT", "unknown")
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def command() -> str:
    """The command that was typed."""
    return " ".join(["python", *sys.argv])
