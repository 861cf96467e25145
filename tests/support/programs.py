"""Scripts that tests run in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from support.forked_programs import start_program

LIMIT = 800
"""Seconds until a script counts as hanging: less than pytest's own limit, which would leave its processes behind."""


def run_script(name: str, *arguments: str, processes: int = 1) -> None:
    """Run a script of this folder, with one thread in each process; it has to end with status 0.

    Args:
        name: of the file.
        arguments: of the script.
        processes: how many to start, as a cluster's launcher does; with 1 the script may start others itself.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "MASTER_"))}
    path = Path(__file__).with_name(name)
    places = [str(path.parents[1]), os.environ.get("PYTHONPATH")]
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    if processes > 1:
        kept |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
        kept |= {"WORLD_SIZE": str(processes)}
    with TemporaryFile("w+") as errors:
        started = [
            start_program(
                [sys.executable, str(path), *arguments],
                env=kept if processes == 1 else {**kept, "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            for rank in range(processes)
        ]
        until = time.monotonic() + LIMIT
        try:
            codes = [process.wait(timeout=max(0.0, until - time.monotonic())) for process in started]
        except BaseException:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with those that it started
                process.wait()
            raise
        errors.seek(0)
        said = errors.read().split("nanobind: leaked")[0]
    fault = re.search(r"SIG[A-Z]+\(\d+\), PID|Fatal Python error", said)  # where a signal such as SIGSEGV hit
    assert not any(codes), f"{codes} " + (said[fault.start() :][:12_000] if fault else "") + said[-3000:]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def report_fatal_signals() -> None:
    """Let this process print the C++ stacks of all its threads, then the Python ones, at a signal that ends it.

    The second alone, which ``PYTHONFAULTHANDLER`` prints, says nothing of a thread of torch's own.
    """
    import torch

    report: Any = getattr(torch._C, "_set_print_stack_traces_on_fatal_signal", None)
    if report is not None:  # not on every system
        report(True)
