"""What the metrics compute when several processes unite their states."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.programs import run_script
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hpa_lightning import metrics

BOX = "[0, 0, 1, 1]"
REFUSAL, ANSWER = "I cannot help with that.", "Mix the two."


def interleaved(ranks: list[Metric]) -> float:
    """Synchronises the first metric as if every one of `ranks` sat in its own process."""
    first = ranks[0]
    order = iter(first._reductions)

    def gather(tensor: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        name = next(order)
        states = [getattr(metric, name) for metric in ranks]
        empty = tensor.new_zeros(0)
        gathered = [state if torch.is_tensor(state) else dim_zero_cat(state or empty) for state in states]
        assert all(state.dtype == tensor.dtype for state in gathered), "processes gather tensors of one type"
        return [state.clone() for state in gathered]

    first.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    first._to_sync = False
    return float(first.compute())


CASES: dict[str, tuple[Callable[[], Metric], list[list[tuple]]]] = {
    "average_performance": (
        lambda: metrics.AveragePerformance(2),
        [[(0, 0, 0.9), (1, 0, 0.5)], [(1, 1, 0.7), (1, 0, 0.5)]],
    ),
    "exact_match": (metrics.ExactMatch, [[(["a", "b"], [("a",), ("a",)])], [(["a"], [("a",)])]]),
    "relaxed_match": (metrics.RelaxedMatch, [[(["1", "2"], [("1",), ("1",)])], [(["3%"], [("0.03",)])]]),
    "vqa_accuracy": (
        metrics.VQAAccuracy,
        [[(["a b", "b"], [("a",) * 10, ("b",) * 2 + ("c",) * 8])], [(["b"], [("b",) * 10])]],
    ),
    "option_accuracy": (metrics.OptionAccuracy, [[(["A", "B"], [("A",), ("A",)])], [(["(A)"], [("A",)])]]),
    "grounding_accuracy": (
        metrics.GroundingAccuracy,
        [[([BOX, ""], [(BOX,), (BOX,)])], [([BOX], [(BOX,)])]],
    ),
    "cider": (
        metrics.CIDEr,
        [
            [(["a red cube"], [("a red cube", "the cube")]), (["two dogs", ""], [("two cats",), ("a",)])],
            [(["a blue caf\u00e9"], [("a blue house",)])],
        ],
    ),
    "circular_accuracy": (  # a question's rotations on two processes
        metrics.CircularAccuracy,
        [[(["A", "B"], [("A",), ("B",)], ["1", "2"])], [(["A", "B"], [("B",), ("B",)], ["1", "2"])], []],
    ),
    "mme_score": (
        metrics.MMEScore,
        [[(["Yes", "no"], [("Yes",), ("No",)], ["1", "2"], ["a", "a"])], [(["no"], [("Yes",)], ["1"], ["b"])]],
    ),
    "cider_with_an_idle_process": (
        metrics.CIDEr,
        [[], [(["a red cube", "two dogs"], [("a red cube", "the cube"), ("two cats",)])], []],
    ),
    "exact_match_with_an_idle_process": (metrics.ExactMatch, [[(["a", "b"], [("a",), ("a",)])], []]),
    "contained_match": (metrics.ContainedMatch, [[(["the a", "b"], [("A",), ("a",)])], [(["a"], [("a",)])]]),
    "token_f1": (metrics.TokenF1, [[(["a b", "b"], [("a",), ("a",)])], [(["a"], [("a",)])]]),
    "attack_success": (metrics.AttackSuccessRate, [[([REFUSAL, ANSWER],)], [([ANSWER],), ([ANSWER],)]]),
    "over_refusal": (metrics.OverRefusalRate, [[([REFUSAL, ANSWER],)], [([ANSWER],), ([ANSWER],)]]),
    "mean_attack_success": (
        lambda: metrics.MeanAttackSuccessRate(["a", "b"]),
        [[("a", [REFUSAL, ANSWER])], [("b", [ANSWER]), ("a", [ANSWER])]],
    ),
    "rise": (
        lambda: metrics.AttackSuccessRise({"a": 0.1, "b": 0.2}),
        [[("a", [REFUSAL, ANSWER])], [("b", [ANSWER]), ("a", [ANSWER])]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name: str) -> None:
    build, updates = CASES[name]
    whole, ranks = build(), [build() for _ in updates]
    for metric, calls in zip(ranks, updates, strict=True):
        for call in calls:
            metric.update(*call)
            whole.update(*call)
    for order in (ranks, ranks[::-1]):
        assert interleaved([copy.deepcopy(metric) for metric in order]) == pytest.approx(float(whole.compute()))


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:.*called before.*")
def test_two_real_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Over gloo, with shares of unequal size, one of which is empty for CIDEr."""
    calls = {name: updates for name, (_, updates) in CASES.items() if name in metrics.METRICS}
    calls["cider"] = [CASES["cider"][1][0], []]
    expected = {}
    for name, updates in calls.items():
        metric = metrics.build_metric(name)
        for update in (call for share in updates for call in share):
            metric.update(*update)
        first = float(metric.compute())
        for _ in range(2):
            metric.update(*updates[0][0])
        expected[name] = [first, float(metric.compute())]
    assert set(metrics.METRICS) - set(expected) == {"attack_success_rate", "over_refusal_rate"}
    run_script("metrics_script.py", f"file://{tmp_path / 'meet'}", json.dumps(calls), str(tmp_path), processes=2)
    for rank in range(2):
        values = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert values == {name: pytest.approx(pair, rel=1e-6) for name, pair in expected.items()}
