"""The small forms of the scripts that show what grows with records and with tasks: they run, and nothing grows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forked_programs import start_program

FOLDER = Path(__file__).parents[1] / "benchmarks" / "reliability"


def table(folder: Path, script: str, *options: str) -> list[list[str]]:
    """The cells of what a script prints, the heading left out."""
    printed, said = folder / "printed.txt", folder / "said.txt"
    with printed.open("w") as output, said.open("w") as errors:
        files = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors}
        command = [sys.executable, str(FOLDER / script), *options]
        status = start_program(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **files).wait()
    assert status == 0, printed.read_text()[-3000:] + said.read_text()[-3000:]
    rows = [line.strip("|").split("|") for line in printed.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_records_take_little_memory(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "records.py", "--records", "20000", "--ways", "lines")
    assert (
        row[:2] == ["20000", "JSON lines"] and int(row[-1]) < 34
    )  # 2000 records take 14 MB; with all in memory 70 MB and more


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_tasks_leave_nothing_behind(tmp_path: Path) -> None:
    rows = table(tmp_path, "tasks.py", "--small")
    for method in ("post_training", "null_space"):
        first, *_, last = [[int(cell) for cell in row[1:]] for row in rows if row[0] == method]
        assert (first[0], last[0]) == (1, 6)
        assert last[1] <= first[1] * 1.2  # tensors
        assert last[4] - last[5] <= (first[4] - first[5]) * 1.1  # the checkpoint without its events
