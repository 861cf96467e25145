"""Processes leave in order, and a child that fails or hangs is told."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.callbacks import process_exit


@pytest.mark.processes
def test_processes_leave_when_nobody_has_anything_to_send() -> None:
    """Without `exit_cleanly` about every second pair ends with SIGABRT on one core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).parents[1] / "support" / "leaving_script.py"
    started = [
        subprocess.Popen([sys.executable, str(script), str(rank), port], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors


def test_a_child_that_fails_fails_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(process_exit.os, "_exit", left.append)
    for code in (0, 3):
        child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        monkeypatch.setattr(process_exit, "_children", [child])
        process_exit.exit_cleanly()
    assert left == [1] and "ended with the statuses [3]" in capsys.readouterr().err


def test_a_child_that_is_late_is_waited_for_and_one_that_hangs_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a starved machine a child needs more than a minute to end; that is no status of failure."""
    assert process_exit.EXIT_TIMEOUT.total_seconds() >= 1800  # as long as torch's own limit of a collective
    left: list[int] = []
    monkeypatch.setattr(process_exit.os, "_exit", left.append)
    monkeypatch.setattr(process_exit, "EXIT_TIMEOUT", timedelta(seconds=0.1))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(process_exit, "_children", [child])
    try:
        process_exit.exit_cleanly()
    finally:
        child.kill()
        child.wait()
    said = capsys.readouterr().err
    assert left == [1] and "has not ended" in said and "statuses" not in said


def test_a_group_that_broke_does_not_hide_a_child_that_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(process_exit.os, "_exit", left.append)
    monkeypatch.setattr(process_exit, "_groups", lambda: [None])
    monkeypatch.setattr(process_exit.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(process_exit.dist, "get_backend", lambda: "gloo")

    def gone(*_: Any, **__: Any) -> Any:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(process_exit.dist, "barrier", gone)
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(process_exit, "_children", [child])
    process_exit.exit_cleanly()
    said = capsys.readouterr().err
    assert left == [1] and "connection closed" in said and "statuses [3]" in said
