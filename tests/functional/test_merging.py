"""Linear and spherical merging and the update of an adapter against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.low_precision import LowPrecision

from hpa_lightning.functional import lora_update, merge_linearly, merge_spherically


def weights(seed: int, rows: int = 7, columns: int = 10, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_linear_merging(dtype: torch.dtype, share: float) -> None:
    tuned, safe = weights(1, dtype=dtype), weights(2, dtype=dtype)
    expected = (1 - share) * tuned.double().numpy() + share * safe.double().numpy()
    merged = merge_linearly(tuned, safe, share)
    assert merged.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-14}[dtype]
    np.testing.assert_allclose(merged.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_update_of_an_adapter(dtype: torch.dtype, low_precision: LowPrecision) -> None:
    a, b = weights(1, 48, 64, dtype), weights(2, 40, 48, dtype)
    expected = 0.5 * b.double().numpy() @ a.double().numpy()
    exact = lora_update(a, b, 0.5)
    with low_precision(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = lora_update(a, b, 0.5)
    for result in (exact, found):
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="lora_b"):
        lora_update(a, b[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_and_equal_entries_are_exact(dtype: torch.dtype) -> None:
    tuned, safe = weights(1, dtype=dtype), weights(2, dtype=dtype)
    tuned[3] = safe[3]
    assert torch.equal(merge_linearly(tuned, safe, 0), tuned)
    assert torch.equal(merge_linearly(tuned, safe, 1), safe)
    for share in (0.1, 0.37, 0.5, 0.93):
        assert torch.equal(merge_linearly(tuned, safe, share)[3], safe[3])


def test_wrong_shares_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        merge_linearly(weights(1), weights(2), 1.5)
    with pytest.raises(ValueError, match="NaN"):
        merge_linearly(weights(1) / 0 * 0, weights(2), 0.5)
    with pytest.raises(ValueError, match="reference"):
        merge_linearly(weights(1), weights(2, 3), 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_spherical_merging(dtype: torch.dtype, share: float) -> None:
    """The arc keeps the angle's share; of vectors of one length it keeps the length."""
    tuned, safe = weights(1, dtype=torch.float64), weights(2, dtype=torch.float64)
    tuned, safe = ((one / one.norm()).to(dtype) for one in (tuned, safe))
    merged = merge_spherically(tuned, safe, share)
    assert merged.dtype == dtype
    one, two, arc = (tensor.double().numpy().ravel() for tensor in (tuned, safe, merged))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    whole, part = (np.arccos(one @ end / np.linalg.norm(one) / np.linalg.norm(end)) for end in (two, arc))
    np.testing.assert_allclose([part, np.linalg.norm(arc)], [share * whole, 1.0], rtol=10 * tolerance)
    assert torch.equal(merge_spherically(tuned, safe, 0), tuned) and torch.equal(
        merge_spherically(tuned, safe, 1), safe
    )


def test_spherical_merging_of_near_and_of_empty_weights() -> None:
    tuned = weights(1)
    for near in (tuned + 1e-3 * weights(2), -tuned):
        assert torch.equal(merge_spherically(tuned, near, 0.3), merge_linearly(tuned, near, 0.3))
    half = merge_spherically(torch.zeros_like(tuned), tuned, 0.5)
    torch.testing.assert_close(half, tuned * 0.5**0.5)
    with pytest.raises(ValueError, match="share"):
        merge_spherically(tuned, tuned, -0.1)
    with pytest.raises(ValueError, match="reference"):
        merge_spherically(tuned, weights(2, 3), 0.5)
