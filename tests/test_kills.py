"""A tiny form of benchmarks/reliability/kills.py: it kills, goes on, and finds the outcome bit for bit alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forked_programs import start_program

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reliability" / "kills.py"


@pytest.mark.skipif(
    not Path("/proc/self").exists() or not hasattr(os, "fork"), reason="forks, and finds children in /proc"
)
def test_two_kills(tmp_path: Path) -> None:
    jobs = ["fit:post_training-lora", "report"]
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "5", "--jobs", *jobs]
    with (tmp_path / "said.txt").open("w") as output:
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        status = start_program(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options).wait()
    said = (tmp_path / "said.txt").read_text()
    assert status == 0 and "0 not alike" in said, said[-3000:]
