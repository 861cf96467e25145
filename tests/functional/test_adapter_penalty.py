"""The adapters' penalties against float64 NumPy loops and against autograd on the dense product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.hpa_reference import FLOATS, array, cases, count

from hpa_lightning.functional.adapter_penalty import (
    largest_update_entries,
    norm_penalty,
    orthogonality_penalty,
    pack_mask,
    protected_update_penalty,
    unpack_mask,
)
from hpa_lightning.functional.numerics import checks


def factors(seed: int, rows: int, columns: int, rank: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((rank, columns), (rows, rank))
    ]


sizes = {
    "seed": st.integers(0, 10**6),
    "rows": st.integers(1, 9),
    "columns": st.integers(1, 19),
    "rank": st.integers(1, 4),
}


@cases
@given(earlier_rows=st.integers(1, 7), dtype=st.sampled_from(FLOATS), **sizes)
def test_orthogonality(seed: int, rows: int, columns: int, rank: int, earlier_rows: int, dtype: torch.dtype) -> None:
    a, _ = factors(seed, rows, columns, rank, dtype)
    earlier = factors(seed + 1, earlier_rows, columns, earlier_rows, dtype)[0]
    left, right = array(a), array(earlier)
    expected, slope = 0.0, np.zeros_like(left)
    for i in range(rank):
        for j in range(earlier_rows):
            overlap = sum(left[i, k] * right[j, k] for k in range(columns))
            expected += abs(overlap)
            slope[i] += np.sign(overlap) * right[j]
    value, gradient = orthogonality_penalty(a, earlier)
    assert value.dtype == gradient.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(array(value), expected, rtol=1e-5)
    np.testing.assert_allclose(array(gradient), slope, rtol=1e-5, atol=1e-6)


@cases
@given(percent=st.floats(0, 100), dtype=st.sampled_from(FLOATS), ties=st.booleans(), **sizes)
def test_largest_entries(
    seed: int, rows: int, columns: int, rank: int, percent: float, dtype: torch.dtype, ties: bool
) -> None:
    a, b = factors(seed, rows, columns, rank, dtype)
    if ties:  # small integers: exact products, with zeros and many equal magnitudes
        a, b = a.round().clamp(-1, 1), b.round().clamp(-1, 1)
    product = np.abs(array(b) @ array(a)).ravel()
    if not ties:
        gaps = np.diff(np.sort(product))
        if len(gaps) and gaps.min() < 1e-5:
            return  # rounding to float32 may swap them
    order = sorted(range(product.size), key=lambda index: (-product[index], index))[: count(percent, product.size)]
    expected = np.zeros(product.size, dtype=bool)
    expected[[index for index in order if product[index] > 0]] = True
    assert np.array_equal(largest_update_entries(a, b, percent).numpy().ravel(), expected)


@cases
@given(rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_packed_masks(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = (torch.from_numpy(rng.random((rows, columns)) < 0.4) for _ in range(2))
    packed = pack_mask(one)
    assert np.array_equal(packed.numpy(), np.packbits(one.numpy(), axis=1, bitorder="little"))
    assert torch.equal(unpack_mask(packed, columns).bool(), one)
    assert torch.equal(unpack_mask(packed | pack_mask(two), columns).bool(), one | two)


@cases
@given(share=st.floats(0, 1), dtype=st.sampled_from(FLOATS), block=st.sampled_from([1, 16, 1 << 23]), **sizes)
def test_protected_update(
    seed: int, rows: int, columns: int, rank: int, share: float, dtype: torch.dtype, block: int
) -> None:
    a, b = factors(seed, rows, columns, rank, dtype)
    mask = torch.from_numpy(np.random.default_rng(seed).random((rows, columns)) < share)
    x, y = (tensor.double().requires_grad_() for tensor in (a, b))
    expected = (y @ x)[mask].abs().mean() if mask.any() else (y @ x).sum() * 0.0
    slope_a, slope_b = torch.autograd.grad(expected, (x, y))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "BLOCK_ENTRIES", block)
        value, gradient_a, gradient_b = protected_update_penalty(a, b, pack_mask(mask))
    assert value.dtype == gradient_a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    product = np.abs(array(b) @ array(a))
    by_hand = sum(product[i, j] for i, j in zip(*np.nonzero(mask.numpy()), strict=True)) / max(1, int(mask.sum()))
    np.testing.assert_allclose(array(value), by_hand, rtol=1e-5, atol=1e-7)
    if product[mask.numpy()].min(initial=1.0) > 1e-5:  # else the sign is a matter of rounding
        np.testing.assert_allclose(array(gradient_a), array(slope_a), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(array(gradient_b), array(slope_b), rtol=1e-5, atol=1e-6)


def test_gradients_are_zero_where_the_update_is() -> None:
    a, b = factors(0, 4, 6, 2)
    value, gradient_a, gradient_b = protected_update_penalty(
        a, torch.zeros_like(b), pack_mask(torch.ones(4, 6, dtype=torch.bool))
    )
    assert value == 0 and not gradient_a.any() and not gradient_b.any()


def test_errors_say_what_came() -> None:
    a, b = factors(0, 4, 6, 2)
    with pytest.raises(ValueError, match=r"earlier: .*\(n, 6\), got float64 tensor of shape \(3, 5\)"):
        orthogonality_penalty(a, torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"lora_b: .*\(r, 2\)"):
        largest_update_entries(a, b[:, :1], 2.0)
    with pytest.raises(ValueError, match="percent"):
        largest_update_entries(a, b, 101.0)
    with pytest.raises(ValueError, match="finite"):
        largest_update_entries(a * float("nan"), b, 2.0)
    with pytest.raises(ValueError, match=r"mask: .*got uint8"):
        pack_mask(torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"packed: .*\(r, 2\) for 9 columns"):
        unpack_mask(torch.zeros(2, 1, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match=r"protected: expected 4 rows"):
        protected_update_penalty(a, b, torch.zeros(3, 1, dtype=torch.uint8))


def test_autocast_does_not_reach_the_penalties() -> None:
    a, b = factors(3, 20, 30, 4, torch.float32)
    earlier, protected = factors(4, 6, 30, 6, torch.float32)[0], pack_mask(largest_update_entries(a, b, 20.0))

    def all_of_them() -> list[torch.Tensor]:
        found = [*orthogonality_penalty(a, earlier), *protected_update_penalty(a, b, protected)]
        return [*found, largest_update_entries(a, b, 20.0)]

    expected = all_of_them()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = all_of_them()
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_entries_count_once_for_each_mask_they_are_in() -> None:
    """SEFE's public code puts the tasks' index lists behind one another and takes the mean over the whole list."""
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 11), (7, 3)))
    masks = [torch.rand(7, 11, generator=generator) < 0.3 for _ in range(3)]
    a.requires_grad_(), b.requires_grad_()
    places = torch.cat([mask.nonzero() for mask in masks])
    assert len(places) > len(torch.unique(places, dim=0))
    expected = (b @ a)[places[:, 0], places[:, 1]].abs().mean()
    expected.backward()
    packed = torch.stack([pack_mask(mask) for mask in masks])
    value, gradient_a, gradient_b = protected_update_penalty(a.detach(), b.detach(), packed)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient_a, a.grad)
    torch.testing.assert_close(gradient_b, b.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms(dtype: torch.dtype) -> None:
    factor = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    leaf = factor.double().requires_grad_()
    torch.norm(leaf, p=2).backward()
    value, gradient = norm_penalty(factor)
    torch.testing.assert_close(value.double(), torch.norm(leaf.detach(), p=2), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-5, atol=1e-7)
    assert not bool(norm_penalty(torch.zeros(2, 3))[1].any())
