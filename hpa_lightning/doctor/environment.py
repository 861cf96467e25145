"""Versions of the packages, and the devices."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from hpa_lightning.float32_products import bfloat16_is_slow


def versions() -> list[tuple[str, str, str]]:
    """Name, installed version, and what is wrong with it (``""`` if nothing) of Python and every requirement."""
    found = [("python", platform.python_version(), ""), ("hpa-lightning", version("hpa-lightning"), "")]
    for text in requires("hpa-lightning") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(needed.name)
        except PackageNotFoundError:
            found.append((needed.name, "missing", f"expected {needed.specifier}"))
            continue
        fits = needed.specifier.contains(installed, prereleases=True)
        found.append((needed.name, installed, "" if fits else f"expected {needed.specifier}"))
    return found


def devices() -> list[str]:
    """One line for each device: processor and memory, then graphics cards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = f", {host_memory() / 1e9:.1f} GB of memory" if host_memory() else ""
    slow = ", slow in bfloat16: float32 is faster" if bfloat16_is_slow() else ""
    lines = [f"cpu: {cores} cores{memory}, {torch.get_num_threads()} threads of PyTorch{slow}"]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: use precision 16-mixed"
        lines.append(f"cuda:{index}: {card.name}, {card.total_memory / 1e9:.1f} GB, {half}")
    if torch.backends.mps.is_available():
        lines.append("mps: Apple's graphics processor, on which nothing was tested")
    if len(lines) == 1:
        lines.append(f"no graphics card that PyTorch {torch.__version__} sees; a fit runs on the CPU")
    return lines


def host_memory() -> int:
    """Memory of the machine in bytes; 0 where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
