from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.low_precision import LowPrecision

from hpa_lightning.functional import (
    dominant_subspace,
    half_precision_basis,
    half_precision_copy,
    joint_basis,
    leave_subspace_,
    null_space_projection_,
)


def hessian(seed: int, c: int = 6, rank: int = 6) -> np.ndarray:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(30, rank)) @ (draw.normal(size=(rank, c)) * np.geomspace(5, 0.1, rank)[:, None])
    return x.T @ x / 15


@given(st.integers(0, 10_000), st.floats(0.01, 0.999))
def test_fewest_directions_that_hold_the_energy(seed: int, energy: float) -> None:
    matrix = hessian(seed)
    basis = dominant_subspace(torch.tensor(matrix), energy).numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)
    held = np.trace(basis.T @ matrix @ basis) / np.trace(matrix)
    assert held >= energy - 1e-9
    values = np.sort(np.linalg.eigvalsh(matrix))[::-1]
    assert basis.shape[1] == 1 or values[: basis.shape[1] - 1].sum() / values.sum() < energy


def test_ends_of_the_range() -> None:
    matrix = torch.tensor(hessian(1, rank=3))
    assert dominant_subspace(matrix, 0.0).shape == (6, 0)
    assert dominant_subspace(matrix, 1.0).shape == (6, 6)
    assert dominant_subspace(matrix, 0.999999).shape[1] <= 3
    assert dominant_subspace(torch.zeros(4, 4), 0.5).shape == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_inputs_in_the_span_see_no_update(dtype: torch.dtype) -> None:
    basis = dominant_subspace(torch.tensor(hessian(2)), 0.9)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    before = rows.double()
    leave_subspace_(rows, basis)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float64: 1e-12}[dtype]
    assert float((rows.double() @ basis).abs().max()) < tolerance
    expected = before.numpy() @ (np.eye(6) - basis.numpy() @ basis.numpy().T)
    np.testing.assert_allclose(rows.double().numpy(), expected, atol=tolerance)


def test_a_lower_precision_of_products_leaves_nothing_in_the_span(low_precision: LowPrecision) -> None:
    basis = dominant_subspace(torch.tensor(hessian(3, c=64, rank=20)), 0.9).float()
    rows = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    with low_precision():
        leave_subspace_(rows, basis)
    assert float((rows.double() @ basis.double()).abs().max()) < 1e-6


def test_no_direction_changes_nothing() -> None:
    rows = torch.ones(2, 4)
    leave_subspace_(rows, dominant_subspace(torch.zeros(4, 4), 0.5))
    assert torch.equal(rows, torch.ones(2, 4))


def test_a_process_without_rows_has_nothing_to_do() -> None:
    leave_subspace_(torch.empty(0, 6), dominant_subspace(torch.tensor(hessian(2)), 0.9))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="square"):
        dominant_subspace(torch.ones(2, 3), 0.5)
    with pytest.raises(ValueError, match="energy"):
        dominant_subspace(torch.eye(2), 1.5)
    with pytest.raises(ValueError, match="expected 3 rows"):
        leave_subspace_(torch.ones(2, 3), torch.ones(2, 1))


@pytest.mark.parametrize("seed", range(5))
def test_the_inputs_of_the_basis_see_no_update(seed: int) -> None:
    basis = dominant_subspace(torch.tensor(hessian(seed)), 0.8)
    generator = torch.Generator().manual_seed(seed)
    before, a, b = (torch.randn(*shape, generator=generator) for shape in ((4, 6), (2, 6), (4, 2)))
    weight, projected = before + b @ a, a.clone()
    null_space_projection_(weight, before, basis)
    null_space_projection_(projected, None, basis)
    torch.testing.assert_close(weight, before + b @ projected, rtol=1e-4, atol=1e-5)
    assert float(((weight - before) @ basis.float()).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_whole_weight_in_several_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpa_lightning.functional.numerics.checks.CACHE_ENTRIES", 5 * 64)
    basis = dominant_subspace(torch.tensor(hessian(4, c=64, rank=20)), 0.9)
    draw = np.random.default_rng(0)
    before, update = draw.normal(size=(33, 64)), 0.1 * draw.normal(size=(33, 64))
    origin = torch.tensor(before).to(dtype)
    weight = torch.tensor(before + update).to(dtype)
    change = weight.double().numpy() - origin.double().numpy()
    expected = origin.double().numpy() + change @ (np.eye(64) - basis.numpy() @ basis.numpy().T)
    kept = origin.clone()
    null_space_projection_(weight, origin, basis if dtype == torch.float64 else basis.float())
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    np.testing.assert_allclose(weight.double().numpy(), expected, atol=tolerance)
    assert torch.equal(origin, kept)


def test_a_lower_precision_of_products_does_not_touch_a_whole_weight(low_precision: LowPrecision) -> None:
    basis = dominant_subspace(torch.tensor(hessian(3, c=64, rank=20)), 0.9).float()
    generator = torch.Generator().manual_seed(0)
    origin = torch.randn(32, 64, generator=generator)
    weight = origin + 0.1 * torch.randn(32, 64, generator=generator)
    with low_precision():
        null_space_projection_(weight, origin, basis)
    update = (weight - origin).double()
    assert float((update @ basis.double()).abs().max()) < 1e-6


def test_a_whole_weight_is_projected_without_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 64, 256
    monkeypatch.setattr("hpa_lightning.functional.numerics.checks.CACHE_ENTRIES", 4 * columns)
    weight, origin = torch.randn(rows, columns), torch.randn(rows, columns)
    basis = torch.linalg.qr(torch.randn(columns, 3))[0]
    with torch.profiler.profile(profile_memory=True) as found:
        null_space_projection_(weight, origin, basis)
    largest = max(event.cpu_memory_usage for event in found.events())
    assert largest < rows * columns * 4 / 4


@pytest.mark.parametrize("small", [0.0, 1e-6, 1e-9, 1e-11])
@pytest.mark.parametrize(("columns", "count"), [(600, 100), (4096, 16), (40, 40)])
def test_a_half_precision_copy_comes_back_bit_for_bit(columns: int, count: int, small: float) -> None:
    """Also where many entries are so small that float32 products with the basis cannot tell them."""
    rng = torch.Generator().manual_seed(columns)
    basis = torch.linalg.qr(torch.randn(columns, count, generator=rng)).Q
    basis[torch.rand(columns, count, generator=rng) < 0.2] *= small
    found, turn = half_precision_basis(torch.linalg.qr(basis).Q if count == columns else basis)
    torch.testing.assert_close(found.T @ found, torch.eye(count), rtol=0, atol=1e-6)
    copy = half_precision_copy(found, turn)
    assert copy.dtype == torch.bfloat16
    again, same = half_precision_basis(copy)
    assert torch.equal(again, found) and torch.equal(same, turn)
    assert torch.equal(half_precision_copy(again, same), copy)
    assert half_precision_copy(*half_precision_basis(torch.empty(5, 0))).shape == (5, 0)


@given(st.integers(0, 10_000), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_two_bases_span_together_what_either_spans(seed: int, own: int, shared: int, other: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(16, 16)))[0]
    first = torch.tensor(turn[:, : own + shared])
    mixed = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(shared + other, shared + other)))[0]
    second = torch.tensor(turn[:, own : own + shared + other] @ mixed)
    both = joint_basis(first, second).numpy()
    assert both.shape == (16, own + shared + other)
    np.testing.assert_allclose(both.T @ both, np.eye(both.shape[1]), atol=1e-10)
    for basis in (first.numpy(), second.numpy()):
        np.testing.assert_allclose(both @ (both.T @ basis), basis, atol=1e-10)
