"""A tiny form of benchmarks/reliability/kills.py: it kills, goes on, and finds the outcome bit for bit alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reliability" / "kills.py"


@pytest.mark.skipif(
    not Path("/proc/self").exists() or not hasattr(os, "fork"), reason="forks, and finds children in /proc"
)
def test_two_kills() -> None:
    jobs = ["fit:post_training-lora", "report"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "5", "--jobs", *jobs],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "0 not alike" in run.stdout
