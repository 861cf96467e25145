"""Model Tailor against float64 NumPy loops, its public code, and at its extremes."""

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
from support.surgeon_reference import damped, factor_diagonal, patch, surgery

from hpa_lightning.functional import model_tailor, surgeon_factor

# llava/train/sparsegpt.py of didizhu-zju/Model-Tailor (e24dafec), sparsity 0.9, blocks of 8 columns.
MODEL_TAILOR = table(
    """
    0.64422 0.33499 0.3191 0.68196 0.25468 0.2056 0.78443 0.0725
    -0.01151 0.9604 -0.21168 -0.32496 0.99797 -0.56467 -0.68263 0.9248
    0.9093 -1.12342 -0.82783 0.88716 -0.86366 -0.88798 0.80745 -0.94163
    -0.96657 0.63469 -0.99835 -0.99819 0.32829 -0.94629 -0.88674 -0.11919
    -0.15775 -0.77276 -0.76198 -0.20734 -0.71674 -0.68066 -0.35244 -0.57627
    -0.5056 -0.57483 -0.77537 -0.20905 -0.82235 0.05842 0.20823 -0.98858
    -0.99369 0.40485 0.42017 -0.99808 0.48021 0.81224 -1.29104 0.63332
    0.69607 -0.94222 0.82584 0.88634 -0.76824 0.97754 0.99814 -0.40968
    -0.37388 0.98936 0.98677 -0.32664 0.97365 1.25545 -0.18042 0.9151
    0.87801 0.07074 0.76426 0.68324 0.41135 0.46456 0.32577 0.76941
    0.79367 0.12445 0.10775 0.82333 0.04069 -0.00974 0.89948 -0.14375
    -0.22634 0.98007 -0.41697 -0.52081 1.37676 -0.72899 -1.14762 0.8213
    """
)


def test_model_tailor_with_the_options_of_the_public_code() -> None:
    old, new, factor = tensors()
    kept = 100 * (48 - int(48 * 0.9) - 1) / 48  # its threshold is the first returned entry's score
    options = {"mix": 0.8, "block_size": 8, "scores_after_compensation": True, "compensation": -1.0}
    found, mask = model_tailor(old, new, factor, kept, **options)
    torch.testing.assert_close(found, MODEL_TAILOR, rtol=0, atol=2e-5)
    assert int(mask.sum()) == 8
    for other in ({"mix": 0.5}, {"scores_after_compensation": False}, {"compensation": 1.0}):
        changed, _ = model_tailor(old, new, factor, kept, **(options | other))
        assert float((changed - MODEL_TAILOR).abs().max()) > 1e-2, other


@cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 6),
    c=st.integers(1, 14),
    size=st.sampled_from([4, 5, 128]),
    percent=st.sampled_from([0.0, 10.0, 35.0, 100.0]),
    mix=st.sampled_from([0.0, 0.5, 1.0]),
    old_dtype=dtypes,
    new_dtype=dtypes,
)
def test_model_tailor_matches_the_reference(
    seed: int,
    r: int,
    c: int,
    size: int,
    percent: float,
    mix: float,
    old_dtype: torch.dtype,
    new_dtype: torch.dtype,
) -> None:
    old, new, hessian = make(seed, r, c, old_dtype, new_dtype)
    before, after = ref.array(old), ref.array(new)
    mask, scores = patch(before, after, factor_diagonal(hessian), percent, mix, size)
    weight, kept = model_tailor(old, new, surgeon_factor(torch.from_numpy(hessian)), percent, mix, size)
    if not np.array_equal(kept.numpy(), mask):  # rounding may swap entries of equal score, no others
        np.testing.assert_allclose(np.sort(scores[kept.numpy()]), np.sort(scores[mask]), rtol=0, atol=1e-7)
        mask = kept.numpy()
    expected = surgery(after, before, ~mask, hessian)
    assert weight.dtype == old.dtype
    ref.near(weight, expected, old_dtype, np.abs(after).max() + np.abs(expected))
    assert torch.equal(weight[~kept], old[~kept])


@pytest.mark.parametrize("dtype", ref.FLOATS)
def test_model_tailor_extremes_are_exact(dtype: torch.dtype) -> None:
    old, new, hessian = make(2, 6, 33, dtype, torch.float32)
    factor = surgeon_factor(torch.from_numpy(hessian))
    assert torch.equal(model_tailor(old, new, factor, keep_percent=0.0)[0], old)
    assert torch.equal(model_tailor(old, new, factor, keep_percent=100.0)[0], new.to(dtype))


def test_model_tailor_holds_the_task_output() -> None:
    """On task inputs the result is closer to the tuned weight than the same mask without compensation."""
    rng = np.random.default_rng(6)
    inputs = correlated(rng, 700, 200)
    old, new, _ = make(6, 32, 200)
    weight, kept = model_tailor(old, new, surgeon_factor(torch.from_numpy(damped(inputs))))
    assert int(kept.sum()) == math.floor(409.6 + 0.5) + math.floor(230.4 + 0.5)  # 128 and 72 columns, 32 rows, 10 %
    errors = [
        output_error(ref.array(candidate), ref.array(new), inputs)
        for candidate in (weight, torch.where(kept, new, old), old)
    ]
    assert errors[0] < 0.95 * errors[1] and errors[1] < errors[2]


def test_a_row_without_spread_has_no_score() -> None:
    """Its entries rank with the average of the others, whatever their size."""
    old = torch.zeros(2, 4)
    new = torch.tensor([[0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 3.0, 4.0]])
    kept = model_tailor(old, new, surgeon_factor(torch.eye(4)), keep_percent=75.0, mix=1.0)[1]
    assert kept.tolist() == [[True] * 4, [False, False, True, True]]
