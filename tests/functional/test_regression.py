from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpa_lightning.functional import LoraUpdate, regression_fusion, regression_map


def problem(seed: int, c: int = 7, r: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    task, kept = (draw.normal(size=(n, c)) @ draw.normal(size=(c, c)) for n in (20, 12))
    return draw.normal(size=(r, c)), task.T @ task / 20, kept.T @ kept / 12


def loss(update: np.ndarray, wanted: np.ndarray, task: np.ndarray, kept: np.ndarray) -> float:
    return float(np.trace((update - wanted) @ task @ (update - wanted).T) + np.trace(update @ kept @ update.T))


@given(st.integers(0, 10_000))
def test_is_the_minimum_of_its_objective(seed: int) -> None:
    wanted, task, kept = problem(seed)
    found = regression_map(torch.tensor(task), torch.tensor(kept))(torch.tensor(wanted)).numpy()
    np.testing.assert_allclose(found, wanted @ task @ np.linalg.inv(task + kept), rtol=1e-6, atol=1e-8)
    best = loss(found, wanted, task, kept)
    draw = np.random.default_rng(seed + 1)
    for scale in (1e-3, 1e-1):
        assert loss(found + scale * draw.normal(size=found.shape), wanted, task, kept) > best


def test_merges_the_weights_before_and_after_as_regmean() -> None:
    """W_prev + D' = (W_new H_t + W_prev K) (H_t + K)^-1."""
    update, task, kept = problem(3)
    before = np.random.default_rng(9).normal(size=update.shape)
    mapped = regression_map(torch.tensor(task), torch.tensor(kept))(torch.tensor(update)).numpy()
    regmean = ((before + update) @ task + before @ kept) @ np.linalg.inv(task + kept)
    np.testing.assert_allclose(before + mapped, regmean, rtol=1e-7)


def test_nothing_to_keep_keeps_the_update_and_lora_maps_its_a() -> None:
    update, task, kept = (torch.tensor(value) for value in problem(5))
    torch.testing.assert_close(regression_map(task, torch.zeros_like(kept))(update), update)
    apply = regression_map(task, kept)
    b = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(b @ apply(update), apply(b @ update))
    assert apply(update.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("task", "kept", "message"),
    [
        (torch.eye(2)[:1], torch.eye(2), "square"),
        (torch.eye(2), torch.eye(3), "kept_hessian"),
        (torch.eye(2), torch.eye(2) * float("nan"), "kept_hessian"),
        (torch.zeros(2, 2), torch.zeros(2, 2), "positive definite"),
    ],
)
def test_bad_hessians(task: torch.Tensor, kept: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regression_map(task, kept)


def test_bad_rows() -> None:
    with pytest.raises(ValueError, match=r"\(k, 2\)"):
        regression_map(torch.eye(2), torch.eye(2))(torch.ones(1, 3))


@pytest.mark.parametrize("seed", range(5))
def test_fused_weights_dense_and_through_an_adapter(seed: int) -> None:
    """Against a linear solve in float64; rows may come alone, as processes hold them."""
    _, task, kept = problem(seed)
    draw = np.random.default_rng(seed)
    before, a, b = (draw.normal(size=shape).astype(np.float32) for shape in ((4, 7), (2, 7), (4, 2)))
    update = 0.5 * b.astype(np.float64) @ a
    expected = before + np.linalg.solve(task + kept, (update @ task).T).T
    mapping = regression_map(torch.tensor(task), torch.tensor(kept))
    weight, adapter = torch.tensor(before), LoraUpdate(torch.tensor(a), torch.tensor(b), 0.5)
    dense = torch.tensor((before + update).astype(np.float32))
    for after, rows in ((adapter, LoraUpdate(adapter.lora_a, adapter.lora_b[1:3], 0.5)), (dense, dense[1:3])):
        fused = regression_fusion(weight, after, mapping)
        np.testing.assert_allclose(fused.numpy(), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(regression_fusion(weight[1:3], rows, mapping), fused[1:3])
