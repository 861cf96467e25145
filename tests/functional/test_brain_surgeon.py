"""The surgeon's functions against float64 NumPy loops that take a general inverse for every column."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.surgeon_reference import accept, damped, factor_diagonal, patch, surgery

from hpa_lightning.functional import HessianAccumulator, model_tailor, safe_delta, surgeon_factor
from hpa_lightning.functional import brain_surgeon as module
from hpa_lightning.functional.brain_surgeon import compensate

cases = settings(ref.cases, max_examples=120)
dtypes = st.sampled_from(ref.FLOATS)


def correlated(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    rank = max(1, c // 8)
    hidden = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, c)) / rank**0.5
    return hidden + 0.3 * rng.standard_normal((n, c))


def make(
    seed: int, r: int, c: int, old_dtype: torch.dtype = torch.float64, new_dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = torch.from_numpy(rng.standard_normal((r, c))).to(old_dtype)
    new = (old.double() + torch.from_numpy(0.3 * rng.standard_normal((r, c)))).to(new_dtype)
    return old, new, damped(correlated(rng, 3 * c, c))


def output_error(weight: np.ndarray, reference: np.ndarray, inputs: np.ndarray) -> float:
    return float((((weight - reference) @ inputs.T) ** 2).sum())


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
