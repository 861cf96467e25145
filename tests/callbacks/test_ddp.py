"""Two processes over gloo: the same masks and weights on every rank, and an evaluation shared between them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from hpa_lightning.callbacks.running import own_share
from hpa_lightning.results import RunResults


def run(script: str, *arguments: str) -> None:
    path = Path(__file__).with_name(script)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "MASTER_"))}
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path.parent}{os.pathsep}{path.parent.parent}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("method", "tuning"),
    [("in_training", "lora"), ("post_training", "full"), ("regression", "full"), ("null_space", "lora")],
)
def test_two_processes_agree(method: str, tuning: str, tmp_path: Path) -> None:
    run("ddp_script.py", str(tmp_path), method, tuning)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    if method == "in_training":
        assert first["steps"] == 6  # 24 samples in batches of 4 over two ranks, two epochs
        assert first["worst"] <= 1e-6
        assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
    audited = method in ("in_training", "post_training")
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) > (12 if audited else 1)


def test_processes_share_the_evaluation(tmp_path: Path) -> None:
    for devices in (1, 2):
        run("ddp_evaluation_script.py", str(tmp_path / str(devices)), str(devices))
    one, two = (RunResults.from_file(tmp_path / str(devices)) for devices in (1, 2))
    counts = [event["n"] for event in two.events("score")]
    assert counts == [event["n"] for event in one.events("score")] and set(counts) == {3}
    # Three evaluations of four sets of three samples, in batches of one.
    answered = [int((tmp_path / name).read_text()) for name in ("1/answered0", "2/answered0", "2/answered1")]
    assert answered == [36, 24, 12]
    # The aligned model is the same in both; training is not, since two processes take other batches.
    assert one.initial() == two.initial() and one.safety(-1) == two.safety(-1)
    answers = sorted((tmp_path / "1" / "predictions").glob("step_00_*.jsonl"))
    assert len(answers) == 4
    for path in answers:
        assert path.read_text() == (tmp_path / "2" / "predictions" / path.name).read_text()


@pytest.mark.parametrize("kind", ["loader", "unbatched", "list"])
def test_every_batch_belongs_to_one_process(kind: str) -> None:
    data = list(range(11))
    loader = {
        "loader": DataLoader(data, batch_size=2),
        "unbatched": DataLoader(data, batch_size=None),
        "list": data,
    }[kind]
    shares = [
        [str(batch) for batch in own_share(loader, SimpleNamespace(world_size=3, global_rank=rank))]
        for rank in range(3)
    ]
    assert sorted(batch for share in shares for batch in share) == sorted(str(batch) for batch in loader)
    assert shares[0][0] == str(next(iter(loader))) and min(map(len, shares)) >= 2
