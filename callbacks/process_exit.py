"""How the processes of one fit end: in order, and with truthful exit codes."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

#: How long a process waits at its end for the others to come to theirs: as long as torch waits in any other place. One
#: that dies is noticed at once; one that still works (an export, a starved machine) is no failure.
EXIT_TIMEOUT = timedelta(minutes=30)
IDLE_TIMEOUT = timedelta(seconds=60)
"""How long a process waits for gloo's threads."""
_children: list[subprocess.Popen[Any]] = []


def exit_cleanly_at_exit(trainer: Any) -> None:
    """See to it that this process ends as it should when the program is over; see :func:`exit_cleanly`."""
    if trainer.world_size == 1 or not dist.is_available():
        return
    _children[:] = getattr(trainer.strategy.launcher, "procs", None) or []
    atexit.unregister(exit_cleanly)  # what is registered last runs first
    atexit.register(exit_cleanly)


def exit_cleanly() -> None:
    """End the process groups, and wait for the processes that this one has started.

    Lightning destroys groups of NCCL and leaves those of gloo. Their threads then run into the end of the interpreter:
    one that still sends, and gives up a tensor there, ends the process with SIGABRT ("terminate called without an
    active exception") after all its work is done. So every process first waits until nobody has anything to send.

    After an error there is nothing to wait for: the others may be gone. A process whose child ends with another status
    than 0, or does not end within :data:`EXIT_TIMEOUT`, ends with status 1 and says so.
    """
    failed = getattr(sys, "last_value", None) is not None
    if not failed and dist.is_initialized() and "gloo" in dist.get_backend():
        try:
            for group in _groups():
                dist.barrier(group, async_op=True).wait(EXIT_TIMEOUT)
            _wait_for_idle_threads()
        except RuntimeError as error:  # the statuses of the children, below, tell how they ended
            print(f"The other processes did not end with this one: {error}", file=sys.stderr)
        else:
            dist.destroy_process_group()
    if failed or not _children:
        return
    reported = ""
    try:
        ended = [child.wait(timeout=EXIT_TIMEOUT.total_seconds()) for child in _children]
        if any(ended):
            reported = f"The processes that this one started ended with the statuses {ended}."
    except subprocess.TimeoutExpired as error:
        reported = f"A process that this one started has not ended {error.timeout:.0f} s after it: {error.cmd}."
    if reported:
        print(reported, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _wait_for_idle_threads() -> None:
    """Wait until the threads of gloo have given up what their last work held.

    They do so after the work counts as done, and need Python's lock for it. This thread lets go of the lock while it
    sleeps: a thread that has not run in the meantime, and does not want to, wants nothing.
    """
    until = time.monotonic() + IDLE_TIMEOUT.total_seconds()
    before: dict[str, str] | None = None
    while time.monotonic() < until:
        time.sleep(0.05)
        now = _gloo_threads()
        if now is None:  # no Linux
            time.sleep(0.2)
            return
        if now == before and not any("State:\tR" in status for status in now.values()):
            return
        before = now


def _gloo_threads() -> dict[str, str] | None:
    """Thread -> what the kernel says of it, how often it has run among that; ``None`` where the kernel does not say."""
    found = {}
    try:
        for thread in Path("/proc/self/task").iterdir():
            status = (thread / "status").read_text()
            if "gloo_runloop" in status.partition("\n")[0]:
                kept = [line for line in status.splitlines() if line.startswith("State") or "_switches" in line]
                found[thread.name] = "\n".join(kept)
    except OSError:
        return None
    return found


def _groups() -> list[Any]:
    """All process groups of this process, those of a device mesh too, in the order in which they were made."""
    known = getattr(getattr(dist.distributed_c10d, "_world", None), "pg_map", {})
    return [group for group in known if isinstance(group, dist.ProcessGroup)] or [None]
