"""The factorisation and the compensation of a brain surgeon against float64 NumPy loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.correlated_layers import cases, correlated, dtypes, make, output_error
from support.surgeon_reference import damped, factor_diagonal, surgery

from hpa_lightning.functional import HessianAccumulator, model_tailor, safe_delta, surgeon_factor
from hpa_lightning.functional import brain_surgeon as module
from hpa_lightning.functional.brain_surgeon import compensate


@cases
@given(seed=st.integers(0, 2**31), c=st.integers(1, 24), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_factor_is_the_upper_cholesky_factor_of_the_inverse(seed: int, c: int, dtype: torch.dtype) -> None:
    _, _, hessian = make(seed, 1, c)
    given_hessian = torch.from_numpy(hessian).to(dtype)
    factor = surgeon_factor(given_hessian)
    expected = np.linalg.cholesky(np.linalg.inv(ref.array(given_hessian))).T
    assert factor.dtype == torch.float64 and torch.equal(factor, factor.triu())
    np.testing.assert_allclose(ref.array(factor), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(np.diag(ref.array(factor)), factor_diagonal(ref.array(given_hessian)), rtol=1e-7)


def test_factor_holds_where_few_rows_leave_only_the_damping() -> None:
    rng = np.random.default_rng(0)
    accumulator = HessianAccumulator(96)
    accumulator.update(torch.from_numpy(1e3 * rng.standard_normal((2, 96))))
    hessian = accumulator.hessian()
    factor = ref.array(surgeon_factor(hessian))
    np.testing.assert_allclose(factor.T @ factor @ ref.array(hessian), np.eye(96), atol=1e-9)


@cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 5),
    c=st.integers(1, 14),
    lazy=st.sampled_from([1, 3, 128]),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    dtype=dtypes,
)
def test_compensation_matches_the_reference(
    seed: int, r: int, c: int, lazy: int, share: float, dtype: torch.dtype
) -> None:
    weight, target, hessian = make(seed, r, c, dtype, dtype)
    moved = np.random.default_rng(seed + 1).random((r, c)) < share
    before, size = weight.clone(), module._LAZY_COLUMNS
    module._LAZY_COLUMNS = lazy
    try:
        result = compensate(weight, target, torch.from_numpy(moved), surgeon_factor(torch.from_numpy(hessian)))
    finally:
        module._LAZY_COLUMNS = size
    expected = surgery(ref.array(weight), ref.array(target), moved, hessian)
    np.testing.assert_allclose(ref.array(result), expected, rtol=1e-8, atol=1e-8)
    assert np.array_equal(ref.array(result)[moved], ref.array(target)[moved])
    assert torch.equal(weight, before), "the argument was changed"


@pytest.mark.parametrize("seed", range(5))
def test_compensation_lowers_the_output_error(seed: int) -> None:
    """Against leaving the others alone, and against the same step in the other direction."""
    rng = np.random.default_rng(seed)
    inputs = correlated(rng, 600, 160)  # two lazy blocks
    old, new, _ = make(seed, 24, 160)
    moved = torch.from_numpy(rng.random((24, 160)) < 0.5)
    factor = surgeon_factor(torch.from_numpy(damped(inputs)))
    right = ref.array(compensate(old, new, moved, factor))
    alone = ref.array(torch.where(moved, new, old))
    wrong = np.where(moved.numpy(), alone, 2 * alone - right)
    errors = [output_error(weight, ref.array(old), inputs) for weight in (right, alone, wrong)]
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


def test_a_single_move_leaves_the_best_reaction() -> None:
    """One column moved: the gradient of the error with respect to every later column is 0."""
    old, new, hessian = make(3, 4, 10)
    moved = torch.zeros(4, 10, dtype=torch.bool)
    moved[:, 0] = True
    result = ref.array(compensate(old, new, moved, surgeon_factor(torch.from_numpy(hessian))))
    gradient = (result - ref.array(old)) @ hessian
    assert np.abs(gradient[:, 0]).min() > 1e-3
    np.testing.assert_allclose(gradient[:, 1:], 0.0, atol=1e-10)


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (torch.ones(2, 3), "square"),
        (torch.ones(2, 2), "positive definite"),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "positive definite"),
        (torch.full((2, 2), torch.nan), "finite"),
        (torch.ones(2, 2, dtype=torch.int64), "floating-point"),
    ],
)
def test_bad_hessians_are_refused(hessian: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surgeon_factor(hessian)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_new": torch.zeros(2, 4)}, "weight_new"),
        ({"weight_prev": torch.zeros(3)}, "weight_prev"),
        ({"factor": torch.eye(4)}, "factor"),
        ({"weight_new": torch.full((2, 3), torch.inf)}, "finite"),
        ({"block_size": 0}, "block_size"),
    ],
)
@pytest.mark.parametrize("function", [safe_delta, model_tailor])
def test_bad_arguments_are_refused(function, change: dict, message: str) -> None:
    good = {"weight_prev": torch.zeros(2, 3), "weight_new": torch.zeros(2, 3), "factor": torch.eye(3)}
    function(**good)
    with pytest.raises(ValueError, match=message):
        function(**{**good, **change})


@pytest.mark.parametrize(
    ("function", "setting"),
    [
        (safe_delta, {"budget": -0.1}),
        (safe_delta, {"budget": math.nan}),
        (safe_delta, {"protected_percent": 101.0}),
        (model_tailor, {"keep_percent": -1.0}),
        (model_tailor, {"mix": 1.5}),
    ],
)
def test_settings_out_of_range_are_refused(function, setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        function(torch.zeros(2, 3), torch.zeros(2, 3), torch.eye(3), **setting)


def test_a_mask_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="moved"):
        compensate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool), torch.eye(3))
