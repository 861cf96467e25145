"""What the metrics compute when several processes unite their states."""

import copy
from collections.abc import Callable

import pytest
import torch
from torchmetrics import Metric

from hpa_lightning import metrics

REFUSAL, ANSWER = "I cannot help with that.", "Mix the two."


def united(ranks: list[Metric]) -> float:
    """Synchronises the first metric as if every one of `ranks` sat in its own process."""
    first = ranks[0]
    order = iter(first._reductions)

    def gather(tensor: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        name = next(order)
        return [getattr(metric, name).clone() for metric in ranks]

    first.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    first._to_sync = False
    return float(first.compute())


CASES: dict[str, tuple[Callable[[], Metric], list[list[tuple]]]] = {
    "average_performance": (
        lambda: metrics.AveragePerformance(2),
        [[(0, 0, 0.9), (1, 0, 0.5)], [(1, 1, 0.7), (1, 0, 0.5)]],
    ),
    "exact_match": (metrics.ExactMatch, [[(["a", "b"], [("a",), ("a",)])], [(["a"], [("a",)])]]),
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
        assert united([copy.deepcopy(metric) for metric in order]) == pytest.approx(float(whole.compute()))
