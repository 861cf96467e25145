"""The map from sketches against the one of whole Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpa_lightning.functional import HessianAccumulator, InputSketch, regression_map, sketched_regression_map
from hpa_lightning.functional.sketched_regression import remembered_sketch

COLUMNS, TOKENS = 80, 500
DAMPING = 0.01


def inputs(seed: int, slope: float = 0.8) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=rng, dtype=torch.float64)).Q
    spectrum = torch.arange(1, COLUMNS + 1).double() ** -slope
    return (torch.randn(TOKENS, COLUMNS, generator=rng, dtype=torch.float64) * spectrum.sqrt() @ turn.T).float()


def hessian(x: Tensor) -> Tensor:
    accumulator = HessianAccumulator(x.shape[1], DAMPING)
    accumulator.update(x)
    return accumulator.hessian()


def sketch(x: Tensor, rank: int) -> InputSketch:
    result = InputSketch(x.shape[1], rank)
    result.update(x)
    return result.scaled(2.0 / len(x))


def kept_sketch(parts: list[Tensor], weights: list[float], rank: int) -> InputSketch:
    total = InputSketch(parts[0].shape[1], min(2 * rank, parts[0].shape[1]))
    for part, weight in zip(parts, weights, strict=True):
        total.merge(sketch(part, rank), weight)
    return total


def test_with_full_rank_it_is_the_exact_map() -> None:
    task, safety, earlier = (inputs(seed) for seed in range(3))
    exact = regression_map(hessian(task), 0.5 * hessian(safety) + 0.3 * hessian(earlier))
    found = sketched_regression_map(sketch(task, COLUMNS), kept_sketch([safety, earlier], [0.5, 0.3], COLUMNS), DAMPING)
    update = torch.randn(7, COLUMNS, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(found(update), exact(update), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_of_low_rank_it_gives_up_little_of_what_the_exact_map_reaches(slope: float) -> None:
    """By the objective that the exact map minimises, over the update before."""
    task, safety = inputs(0, slope), inputs(1, slope)
    h_task, h_kept = hessian(task), 0.5 * hessian(safety)
    update = torch.randn(7, COLUMNS, generator=torch.Generator().manual_seed(9)).double()

    def loss(mapped: Tensor) -> float:
        moved = mapped.double() - update
        return float(((moved @ h_task) * moved).sum() + ((mapped.double() @ h_kept) * mapped.double()).sum())

    exact = regression_map(h_task, h_kept)(update)
    found = sketched_regression_map(sketch(task, 20), kept_sketch([safety], [0.5], 20), DAMPING)(update)
    assert loss(exact) <= loss(found) * (1 + 1e-9)
    gained = loss(update) - loss(exact)
    assert loss(update) - loss(found) > {0.5: 0.8, 1.0: 0.85, 2.0: 0.95}[slope] * gained


def test_nothing_kept_changes_nothing() -> None:
    task = inputs(0)
    update = torch.randn(3, COLUMNS)
    found = sketched_regression_map(sketch(task, 10), InputSketch(COLUMNS, 10), DAMPING)(update)
    torch.testing.assert_close(found, update, rtol=1e-5, atol=1e-6)


def test_dead_columns_and_bad_input() -> None:
    x = inputs(0)
    x[:, 3] = 0.0
    mapped = sketched_regression_map(sketch(x, 10), sketch(x, 10), DAMPING)(torch.ones(2, COLUMNS))
    assert bool(torch.isfinite(mapped).all())
    with pytest.raises(ValueError, match="positive definite"):
        sketched_regression_map(InputSketch(4, 2), InputSketch(4, 2), 0.0)
    with pytest.raises(ValueError, match="80 columns"):
        sketched_regression_map(sketch(x, 10), InputSketch(4, 2))
    with pytest.raises(ValueError, match=r"\(k, 80\)"):
        sketched_regression_map(sketch(x, 10), sketch(x, 10))(torch.ones(2, 3))


@pytest.mark.parametrize("rank", [5, 24, COLUMNS])
def test_remembering_a_task_is_merging_into_what_is_remembered(rank: int) -> None:
    """Bit for bit what a sketch that takes one task after the other, rounded after each, holds; inputs stay."""
    held, total = InputSketch(COLUMNS, rank), None
    for seed in range(3):
        task = sketch(inputs(seed), rank)
        rows = task.rows.clone()
        total = remembered_sketch(total, task, rank)
        held.merge(task)
        held.round_()
        assert torch.equal(task.rows, rows)
    assert total is not None and total.state_dict()["rows"].dtype == torch.bfloat16
    for part, tensor in held.state_dict().items():
        assert torch.equal(total.state_dict()[part], tensor), part
    wide = remembered_sketch(total, sketch(inputs(3), rank), rank + 10**6)
    assert wide.rank == COLUMNS
