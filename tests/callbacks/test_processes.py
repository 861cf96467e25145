"""Two processes over gloo, DDP and FSDP2: every method does what it does in one, and they share the evaluation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import evaluation_script, processes_script
from support.foreign_module import ACCELERATOR, foreign_module
from support.forked_programs import start_program
from support.method_registry import TUNING_IDS
from support.processes_script import NOT_SHARDED, RESUMED
from support.programs import run_script
from torch.optim import SGD
from transformers import AutoModelForImageTextToText

from hpa_lightning.callbacks.processes import ProcessesDifferError, model_facts, require_agreement
from hpa_lightning.results.run_results import RunResults


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How every method ends in one process."""
    folder = tmp_path_factory.mktemp("one")
    processes_script.main(folder, "one", TUNING_IDS)
    return torch.load(folder / "rank0.pt")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Strategy, and the folder of what two processes did: ``methods``, ``evaluation``, ``boundaries``."""
    folder = tmp_path_factory.mktemp(request.param)
    run_script("together_script.py", str(folder), request.param)
    return request.param, folder


@pytest.mark.processes
def test_two_processes_do_what_one_does(one: dict[str, Any], two: tuple[str, Path]) -> None:
    strategy, folder = two
    ranks = [torch.load(folder / "methods" / f"rank{rank}.pt") for rank in range(2)]
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


def test_a_sharded_model_on_one_device_does_what_a_whole_one_does(tmp_path: Path) -> None:
    cases = [case for case in TUNING_IDS if case not in NOT_SHARDED] if ACCELERATOR != "cpu" else RESUMED[:1]
    folders = {name: tmp_path / name for name in ("one", "fsdp-one")}
    for folder in folders.values():
        folder.mkdir()
    processes_script.main(folders["one"], "one", cases)
    run_script("processes_script.py", str(folders["fsdp-one"]), "fsdp-one", *cases)
    results = {name: torch.load(folder / "rank0.pt", map_location="cpu") for name, folder in folders.items()}
    for case, sharded in results["fsdp-one"].items():
        for name, weight in results["one"][case.removesuffix(", resumed")]["weights"].items():
            torch.testing.assert_close(sharded["weights"][name], weight, rtol=0, atol=1e-6, msg=f"{case}: {name}")
    assert any("resumed" in case for case in results["fsdp-one"])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluation_script.main(folder, "one")
    return folder


@pytest.mark.processes
def test_processes_share_the_evaluation(evaluated: Path, two: tuple[str, Path]) -> None:
    strategy, folder = two[0], two[1] / "evaluation"
    one, shared = RunResults.from_file(evaluated), RunResults.from_file(folder)
    counts = [event["n"] for event in shared.events("score")]
    assert counts == [event["n"] for event in one.events("score")] and set(counts) == {3}
    # Three evaluations of four sets of three samples, in batches of one.
    answered = [int(path.read_text()) for path in (evaluated / "answered0", *sorted(folder.glob("answered?")))]
    assert answered == [36, 24, 12 if strategy == "ddp" else 24]  # sharded, both run as often, and half of one counts
    # The aligned model is the same in both; training is not, since two processes take other batches.
    assert one.initial() == shared.initial() and one.safety(-1) == shared.safety(-1)
    answers = sorted((evaluated / "predictions").glob("step_00_*.jsonl"))
    assert len(answers) == 4
    for path in answers:
        assert path.read_text() == (folder / "predictions" / path.name).read_text()
    for path in (evaluated / "batches0.pt", *sorted(folder.glob("batches?.pt"))):
        batches = torch.load(path)
        assert batches[:2] == batches[2:4], f"{path}: the probe takes other batches than the task's first steps"
    if strategy == "ddp":
        last = {event["set"]: event["score"] for event in shared.events("score") if event["step"] == 1}
        (scores, *_) = torch.load(folder / "scores.pt")  # `trainer.test`, which repeats samples by itself
        means = {name: score for name, score in scores.items() if name.startswith("evaluation/")}
        assert set(means) >= {"evaluation/average_performance", "evaluation/mean_attack_success_rate"}
        assert {n.split("/")[0]: score for n, score in scores.items() if n not in means} == pytest.approx(last)
    exported = AutoModelForImageTextToText.from_pretrained(folder / "exported").state_dict()
    trained = torch.load(folder / "trained.pt")
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in trained.items())


@pytest.mark.processes
def test_a_late_end_and_a_diverged_process(two: tuple[str, Path]) -> None:
    """A task that ends in `on_fit_end` does so on both; a loss that is not finite on one of them stops both."""
    told = [(two[1] / "boundaries" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert all("step 1 (epoch 0, batch 1): the loss is not finite" in message for message in told)


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
    # How soon it stops is for the script to say.
    outcome = ranks.run(accident, "ddp", tmp_path, limit=800, start=start_program)
    assert outcome.seconds is not None, "the other process did not stop"
    assert all(outcome.codes) and says in outcome.says


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
