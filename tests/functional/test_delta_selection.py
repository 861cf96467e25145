"""Safe Delta against float64 NumPy loops, its public code, and at its extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.correlated_layers import cases, correlated, dtypes, make, output_error
from support.public_code import table, tensors
from support.surgeon_reference import accept, damped, factor_diagonal, surgery

from hpa_lightning.functional import safe_delta, surgeon_factor

# llama2/safedelta/safedelta_runner.py of ColinLu50/SafeDelta (3a4ea357), s = 450, blocks of 8 columns. Its sort leaves
# open in which order the equal entries of one column are accepted; it was made stable here.
SAFE_DELTA = table(
    """
    0.92054 0.61131 0.59542 0.68196 0.24501 0.189 0.76955 0.06105
    0.26481 1.1907 -0.21825 -0.33696 0.94895 -0.73432 -0.82765 0.81741
    0.75784 -1.11527 -1.04561 0.88716 -0.856 -0.8761 0.81957 -0.93318
    -1.26424 0.42041 -0.99206 -0.98905 0.37297 -0.80329 -0.74373 -0.04246
    -0.39504 -0.54009 -0.63042 -0.20734 -0.71996 -0.68139 -0.3578 -0.57916
    -0.2667 -0.45241 -0.33007 -0.21298 -0.85233 -0.0329 0.10287 -0.97096
    -0.78109 0.3031 0.39154 -0.99808 0.48033 0.52086 -0.99551 0.63282
    0.58022 -0.95576 0.8295 0.88642 -0.75813 1.00289 1.03956 -0.44304
    -0.19137 0.93106 0.90883 -0.32664 0.97498 0.9604 -0.1785 0.91669
    0.83962 -0.0265 0.76885 0.68536 0.42237 0.50886 0.35903 0.74465
    0.53404 0.32611 0.28237 0.82333 0.03664 -0.01166 0.89319 -0.14814
    -0.04405 1.17455 -0.42597 -0.52628 0.95695 -0.8379 -0.92485 0.84076
    """
)


def test_safe_delta_with_the_options_of_the_public_code() -> None:
    old, new, factor = tensors()
    options = {"budget": 450.0, "block_size": 8, "columns_at_once": 4, "costs_after_compensation": True}
    found, accepted = safe_delta(old, new, factor, **options)
    torch.testing.assert_close(found, SAFE_DELTA, rtol=0, atol=2e-5)
    assert 0 < int(accepted.sum()) < accepted.numel()
    for other in ({"columns_at_once": 1}, {"costs_after_compensation": False}):
        changed, _ = safe_delta(old, new, factor, **(options | other))
        assert float((changed - SAFE_DELTA).abs().max()) > 1e-3, other


@cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 6),
    c=st.integers(1, 14),
    size=st.sampled_from([4, 5, 2048]),
    protected=st.sampled_from([0.0, 15.0, 60.0]),
    share=st.sampled_from([0.1, 0.5, 2.0]),
    old_dtype=dtypes,
    new_dtype=dtypes,
)
def test_safe_delta_matches_the_reference(
    seed: int,
    r: int,
    c: int,
    size: int,
    protected: float,
    share: float,
    old_dtype: torch.dtype,
    new_dtype: torch.dtype,
) -> None:
    old, new, hessian = make(seed, r, c, old_dtype, new_dtype)
    before, after, diagonal = ref.array(old), ref.array(new), factor_diagonal(hessian)
    budget = share * 0.09 * c * 2 * 4096  # 0.09: mean square of the update; about this share of it is affordable
    mask = accept(after - before, diagonal, budget, protected, size)
    weight, accepted = safe_delta(old, new, surgeon_factor(torch.from_numpy(hessian)), budget, protected, size)
    assert weight.dtype == old.dtype and np.array_equal(accepted.numpy(), mask)
    expected = surgery(before, after, mask, hessian)
    ref.near(weight, expected, old_dtype, np.abs(before).max() + np.abs(expected))
    assert torch.equal(weight[accepted], new[accepted].to(old_dtype))


def test_safe_delta_spends_between_nothing_and_everything() -> None:
    """The cases above are no empty ones: accepted shares grow with the budget, up to the protected share."""
    old, new, hessian = make(0, 16, 40)
    factor = surgeon_factor(torch.from_numpy(hessian))
    budgets = [0.0, 1e3, 4e3, 1e4, 1e9]
    shares = [float(safe_delta(old, new, factor, budget)[1].double().mean()) for budget in budgets]
    assert shares[0] == 0.0 and shares == sorted(shares) and len(set(shares)) == 5
    assert shares[-1] == 1 - math.floor(0.15 * 640) / 640


@pytest.mark.parametrize("dtype", ref.FLOATS)
def test_safe_delta_extremes_are_exact(dtype: torch.dtype) -> None:
    old, new, hessian = make(1, 6, 33, dtype, torch.float32)
    factor = surgeon_factor(torch.from_numpy(hessian))
    nothing, accepted = safe_delta(old, new, factor, budget=0.0)
    assert torch.equal(nothing, old) and not accepted.any()
    everything, accepted = safe_delta(old, new, factor, budget=math.inf)
    assert torch.equal(everything, new.to(dtype)) and accepted.all()


def test_safe_delta_holds_the_safety_output() -> None:
    """On safety inputs the result is closer to the old weight than the same entries without compensation."""
    rng = np.random.default_rng(5)
    inputs = correlated(rng, 400, 64)
    old, new, _ = make(5, 32, 64)
    weight, accepted = safe_delta(old, new, surgeon_factor(torch.from_numpy(damped(inputs))), budget=10000.0)
    assert 0.2 < float(accepted.double().mean()) < 0.8
    errors = [
        output_error(ref.array(candidate), ref.array(old), inputs)
        for candidate in (weight, torch.where(accepted, new, old), new)
    ]
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]
