"""Scripts that tests run in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 800
"""Seconds until a script counts as hanging: less than pytest's own limit, which would leave its processes behind."""


def run_script(name: str, *arguments: str) -> None:
    """Run a script of this folder, which may start processes, with one thread each; it has to end with status 0."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "MASTER_"))}
    path = Path(__file__).with_name(name)
    places = [str(path.parents[1]), os.environ.get("PYTHONPATH")]
    process = subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={
            **environment,
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=LIMIT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with those that it started, which would hold the pipe open
        process.communicate()
        raise
    fault = re.search(r"SIG[A-Z]+\(\d+\), PID|Fatal Python error", errors)  # where a signal such as SIGSEGV hit
    assert process.returncode == 0, (errors[fault.start() :][:12_000] if fault else "") + errors[-3000:]


def report_fatal_signals() -> None:
    """Let this process print the C++ stacks of all its threads, then the Python ones, at a signal that ends it.

    The second alone, which ``PYTHONFAULTHANDLER`` prints, says nothing of a thread of torch's own.
    """
    import torch

    report: Any = getattr(torch._C, "_set_print_stack_traces_on_fatal_signal", None)
    if report is not None:  # not on every system
        report(True)
