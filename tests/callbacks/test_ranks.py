"""Several processes: an accident of one stops the others, and all leave in order."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from support.foreign_module import foreign_module
from torch.optim import SGD

from hpa_lightning.callbacks import process_exit
from hpa_lightning.callbacks.processes import ProcessesDifferError, model_facts, require_agreement

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reliability" / "ranks.py"


@pytest.fixture(scope="module")
def ranks() -> Any:
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ranks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.processes
@pytest.mark.parametrize(
    ("accident", "says"),
    [
        ("killed-1", "Error"),
        ("data", "the processes differ in the training records"),
        ("mask-later", "the processes differ in the mask of FocusPartition"),
    ],
)
def test_the_other_process_stops_and_says_why(ranks: Any, accident: str, says: str, tmp_path: Path) -> None:
    outcome = ranks.run(accident, "ddp", tmp_path, limit=800)  # how soon it stops is for the script to say
    assert outcome.seconds is not None, "the other process did not stop"
    assert all(outcome.codes) and says in outcome.says


@pytest.mark.processes
def test_processes_leave_when_nobody_has_anything_to_send() -> None:
    """Without `leave_in_order` about every second pair ends with SIGABRT on one core."""
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


def everyone(*others: dict[str, str]) -> Any:
    def gather(into: list[Any], own: dict[str, str]) -> None:
        into[:] = [own, *others]

    return gather


def test_what_differs_is_named_with_each_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SimpleNamespace(world_size=3)
    monkeypatch.setattr(dist, "all_gather_object", everyone({"a": "1", "b": "2"}, {"a": "1", "b": "3"}))
    with pytest.raises(ProcessesDifferError, match=r"differ in b \(rank 0: 2, rank 1: 2, rank 2: 3\)"):
        require_agreement(trainer, {"a": "1", "b": "2"})
    monkeypatch.setattr(dist, "all_gather_object", everyone({"a": "1"}, {"a": "1"}))
    require_agreement(trainer, {"a": "1"})


def test_facts_see_one_bit_of_a_weight_and_of_a_mask() -> None:
    module = foreign_module(SGD, lora=False)
    mask = {"q": module.model.head.weight.detach()[0] > 0}
    callback: Any = SimpleNamespace(retained=mask)
    before = model_facts(module, [callback])
    assert len(before) == 2 and before == model_facts(module, [callback])
    mask["q"][3] = ~mask["q"][3]
    module.model.head.weight.data[0, 0] += 1e-6
    after = model_facts(module, [callback])
    assert all(after[name] != told for name, told in before.items())


def test_a_child_that_fails_fails_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(process_exit.os, "_exit", left.append)
    for code in (0, 3):
        child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        monkeypatch.setattr(process_exit, "_children", [child])
        process_exit.leave_in_order()
    assert left == [1] and "ended with the statuses [3]" in capsys.readouterr().err


def test_a_child_that_is_late_is_waited_for_and_one_that_hangs_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a starved machine a child needs more than a minute to end; that is no status of failure."""
    assert process_exit.LEAVE.total_seconds() >= 1800  # as long as torch's own limit of a collective
    left: list[int] = []
    monkeypatch.setattr(process_exit.os, "_exit", left.append)
    monkeypatch.setattr(process_exit, "LEAVE", timedelta(seconds=0.1))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(process_exit, "_children", [child])
    try:
        process_exit.leave_in_order()
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
    process_exit.leave_in_order()
    said = capsys.readouterr().err
    assert left == [1] and "connection closed" in said and "statuses [3]" in said
