"""Two processes over gloo: every rank ends with the same masks and the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(("method", "tuning"), [("in_training", "lora"), ("post_training", "full")])
def test_two_processes_agree(method: str, tuning: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ddp_script.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "MASTER_"))}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), method, tuning],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{script.parent}{os.pathsep}{script.parent.parent}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    if method == "in_training":
        assert first["steps"] == 6  # 24 samples in batches of 4 over two ranks, two epochs
        assert first["worst"] <= 1e-6
        assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) > 12
