"""Two processes over gloo, DDP and FSDP2: every method does what it does in one, and they share the evaluation."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import ACCELERATOR, foreign_module
from support.method_registry import TUNING_IDS
from support.processes_script import NOT_SHARDED, RESUMED
from support.programs import run_script
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from hpa_lightning.callbacks import SafetyGate, SequentialTuning
from hpa_lightning.callbacks.baselines import RegLoRA
from hpa_lightning.callbacks.running import own_share
from hpa_lightning.results.run_results import RunResults


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How every method ends in one process."""
    folder = tmp_path_factory.mktemp("one")
    run_script("processes_script.py", str(folder), "one")
    return torch.load(folder / "rank0.pt")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """How every method ends on each of two processes."""
    folder = tmp_path_factory.mktemp(request.param)
    run_script("processes_script.py", str(folder), request.param)
    return request.param, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.processes
def test_two_processes_do_what_one_does(one: dict[str, Any], two: tuple[str, list[dict[str, Any]]]) -> None:
    strategy, ranks = two
    cases = [case for case in TUNING_IDS if strategy == "ddp" or case not in NOT_SHARDED]
    resumed = [f"{case}, resumed" for case in RESUMED] if strategy == "fsdp" else []
    assert [*cases, *resumed] == list(ranks[0])
    for case in (*cases, *resumed):
        expected, first, second = one[case.removesuffix(", resumed")], ranks[0][case], ranks[1][case]
        for name, weight in expected["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name]), f"{case}: {name}"
            torch.testing.assert_close(first["weights"][name], weight, rtol=0, atol=1e-6, msg=f"{case}: {name}")
        if "resumed" not in case:
            assert first["events"] == expected["events"], case  # written once, by the first process
        if case.startswith("in_training"):
            assert first["steps"] == 6  # 24 samples, eight in a step, two epochs
            assert first["worst"] <= 1e-6  # and the watcher has compared the retained columns bit for bit
            for rank in (first, second):
                assert all(torch.equal(rank["masks"][name], mask) for name, mask in expected["masks"].items()), case


@pytest.mark.skipif("HPA_TEST_ACCELERATOR" not in os.environ, reason="part of benchmarks/gpu.sh")
def test_a_sharded_model_on_one_device_does_what_a_whole_one_does(tmp_path: Path) -> None:
    cases = [case for case in TUNING_IDS if case not in NOT_SHARDED] if ACCELERATOR != "cpu" else RESUMED[:1]
    results = {}
    for name in ("one", "fsdp-one"):
        (tmp_path / name).mkdir()
        run_script("processes_script.py", str(tmp_path / name), name, *cases)
        results[name] = torch.load(tmp_path / name / "rank0.pt", map_location="cpu")
    for case, sharded in results["fsdp-one"].items():
        for name, weight in results["one"][case.removesuffix(", resumed")]["weights"].items():
            torch.testing.assert_close(sharded["weights"][name], weight, rtol=0, atol=1e-6, msg=f"{case}: {name}")
    assert any("resumed" in case for case in results["fsdp-one"])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("evaluated")
    run_script("evaluation_script.py", str(folder), "one")
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_share_the_evaluation(evaluated: Path, strategy: str, tmp_path: Path) -> None:
    run_script("evaluation_script.py", str(tmp_path), strategy)
    one, two = RunResults.from_file(evaluated), RunResults.from_file(tmp_path)
    counts = [event["n"] for event in two.events("score")]
    assert counts == [event["n"] for event in one.events("score")] and set(counts) == {3}
    # Three evaluations of four sets of three samples, in batches of one.
    answered = [int(path.read_text()) for path in (evaluated / "answered0", *sorted(tmp_path.glob("answered?")))]
    assert answered == [36, 24, 12 if strategy == "ddp" else 24]  # sharded, both run as often, and half of one counts
    # The aligned model is the same in both; training is not, since two processes take other batches.
    assert one.initial() == two.initial() and one.safety(-1) == two.safety(-1)
    answers = sorted((evaluated / "predictions").glob("step_00_*.jsonl"))
    assert len(answers) == 4
    for path in answers:
        assert path.read_text() == (tmp_path / "predictions" / path.name).read_text()
    for path in (evaluated / "batches0.pt", *sorted(tmp_path.glob("batches?.pt"))):
        batches = torch.load(path)
        assert batches[:2] == batches[2:4], f"{path}: the probe takes other batches than the task's first steps"
    if strategy == "ddp":
        last = {event["set"]: event["score"] for event in two.events("score") if event["step"] == 1}
        (scores, *_) = torch.load(tmp_path / "scores.pt")  # `trainer.test`, which repeats samples by itself
        means = {name: score for name, score in scores.items() if name.startswith("evaluation/")}
        assert set(means) >= {"evaluation/average_performance", "evaluation/mean_attack_success_rate"}
        assert {n.split("/")[0]: score for n, score in scores.items() if n not in means} == pytest.approx(last)
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported").state_dict()
    trained = torch.load(tmp_path / "trained.pt")
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in trained.items())


def strategies() -> dict[str, tuple[Strategy, str]]:
    """Strategies as they are before any process has started, and what their refusal says."""
    pieces = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    pieces._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}  # type: ignore[assignment]
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    sharded._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 1)}  # type: ignore[assignment]
    return {
        "tensor parallel": (pieces, "tensor_parallel_size is 2"),
        "fsdp1": (FSDPStrategy(), "FSDP1 flattens"),
        "deepspeed": (DeepSpeedStrategy.__new__(DeepSpeedStrategy), "fp32 copies"),
        "fsdp2": (sharded, "whole adapters"),
        "fsdp2, rollback": (sharded, "rollback keeps whole weights"),
    }


@pytest.mark.parametrize("kind", ["tensor parallel", "fsdp1", "deepspeed", "fsdp2", "fsdp2, rollback"])
def test_strategies_are_refused_by_name_and_reason(kind: str) -> None:
    strategy, reason = strategies()[kind]
    callback = {"fsdp2": RegLoRA(), "fsdp2, rollback": SafetyGate(0.1, "rollback")}.get(kind, SequentialTuning())
    with pytest.raises(MisconfigurationException, match=f"{type(strategy).__name__}.*{reason}"):
        callback.setup(SimpleNamespace(strategy=strategy), foreign_module(torch.optim.SGD, True), "fit")


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


@pytest.mark.processes
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_late_end_and_a_diverged_process(strategy: str, tmp_path: Path) -> None:
    """A task that ends in `on_fit_end` does so on both; a loss that is not finite on one of them stops both."""
    run_script("boundaries_script.py", str(tmp_path), strategy)
    told = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert all("step 1 (epoch 0, batch 1): the loss is not finite" in message for message in told)
