"""Ctrl-C of a command that can be continued: it is told at once, and ends in order."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CONTINUED = (("benchmark", "build"), ("data", "filter"), ("fuse",), ("merge",))
"""First words of the commands that go on where they were. `study`, `demo` and `fit` tell of their runs themselves."""


@contextmanager
def told_interrupts(words: Sequence[str], program: str) -> Iterator[None]:
    """Say on the standard error stream that a command was interrupted, as soon as it is.

    What is half done is put away before the process ends, which may take seconds.

    Args:
        words: of the command line.
        program: its name.

    Raises:
        KeyboardInterrupt: as without this.
    """
    command = next((known for known in CONTINUED if tuple(words[: len(known)]) == known), None)
    # Where a caller handles the signal, or ignores it (a shell's background), that counts.
    if command is None or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    told = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal told
        if not told:
            told = True  # behind a bar, whose line is not ended
            print(
                f"\n{program} {' '.join(command)}: interrupted; the same command goes on.", file=sys.stderr, flush=True
            )
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread, which gets no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
