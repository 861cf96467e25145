from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref

from hpa_lightning.functional import fuse, lora_fuse_, orthogonal_update, projection_scale
from hpa_lightning.functional.numerics import checks

dims = st.integers(1, 12)
dtypes = st.sampled_from(ref.FLOATS)


def make(rng: np.random.Generator, dtype: torch.dtype, *shape: int, size: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(size * rng.standard_normal(shape)).to(dtype)


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=dims,
    c=dims,
    kind=st.sampled_from(["random", "zero weight", "zero update", "small update", "parallel"]),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    orthogonal=st.booleans(),
    old_dtype=dtypes,
    new_dtype=dtypes,
)
def test_dense_fusion_matches_the_reference(
    seed: int,
    r: int,
    c: int,
    kind: str,
    share: float,
    orthogonal: bool,
    old_dtype: torch.dtype,
    new_dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(seed)
    old = make(rng, old_dtype, r, c, size=0.0 if kind == "zero weight" else 1.0)
    step = {"zero update": 0.0, "small update": 1e-3}.get(kind, 0.5)
    new = (old.double() + make(rng, torch.float64, r, c, size=step)).to(new_dtype)
    if kind == "parallel":
        new = (1.25 * old.double()).to(new_dtype)
    mask = torch.from_numpy(rng.random(c) < share)
    before, w, w_new = old.clone(), ref.array(old), ref.array(new)

    s = projection_scale(old, new)
    result = fuse(old, new, mask, orthogonal)
    assert s.shape == ()
    # <D, W> may cancel: 1e-5 of its terms' sum.
    terms = np.abs((w_new - w) * w).sum() / max((w**2).sum(), 1e-300)
    assert abs(float(s) - ref.scale(w, w_new)) <= 1e-5 * terms
    assert result.dtype == old.dtype
    size = np.abs(w) + np.abs(w_new)
    ref.near(result, ref.fused(w, w_new, ref.array(mask), orthogonal), old_dtype, size)
    assert torch.equal(result[:, mask], old[:, mask])
    assert torch.equal(old, before)
    tilde = orthogonal_update(old, new)
    assert tilde.dtype == old.dtype
    ref.near(tilde, ref.fused(w, w_new, np.zeros(c)), old_dtype, size)


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=dims,
    c=dims,
    q=st.integers(1, 6),
    scaling=st.sampled_from([0.0, 0.5, 2.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    zero=st.booleans(),
    orthogonal=st.booleans(),
    dtype=dtypes,
    adapter_dtype=dtypes,
)
def test_lora_fusion_equals_the_dense_one(
    seed: int,
    r: int,
    c: int,
    q: int,
    scaling: float,
    share: float,
    zero: bool,
    orthogonal: bool,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(seed)
    weight = make(rng, dtype, r, c, size=0.0 if zero else 1.0)
    a, b = make(rng, adapter_dtype, q, c), make(rng, adapter_dtype, r, q)
    mask = torch.from_numpy(rng.random(c) < share)
    old, a_before, b_before = weight.clone(), a.clone(), b.clone()
    delta = scaling * ref.array(b) @ ref.array(a)

    s = lora_fuse_(weight, a, b, scaling, mask, orthogonal)
    w = ref.array(old)
    terms = scaling * (np.abs(ref.array(b)) @ np.abs(ref.array(a)))
    size = np.abs(w) + terms
    ref.near(weight, ref.fused(w, w + delta, ref.array(mask), orthogonal), dtype, size)
    assert torch.equal(weight[:, mask], old[:, mask])
    assert torch.equal(a, a_before)
    assert torch.equal(b, b_before)
    expected = ref.scale(w, w + delta) if orthogonal else 0.0
    assert abs(float(s) - expected) <= 1e-5 * (terms * np.abs(w)).sum() / max((w**2).sum(), 1e-300)
    if dtype == torch.float64 and adapter_dtype == torch.float64:
        dense = fuse(old, torch.from_numpy(w + delta), mask, orthogonal)
        torch.testing.assert_close(weight, dense, rtol=1e-9, atol=1e-9)


def test_results_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    old, new = make(rng, torch.float32, 37, 11), make(rng, torch.float32, 37, 11)
    a, b, mask = make(rng, torch.float32, 3, 11), make(rng, torch.float32, 37, 3), torch.arange(11) % 4 == 0
    whole, whole_lora = fuse(old, new, mask), old.clone()
    lora_fuse_(whole_lora, a, b, 0.5, mask)
    monkeypatch.setattr(checks, "BLOCK_ENTRIES", 44)
    torch.testing.assert_close(fuse(old, new, mask), whole)
    lora_fuse_(old, a, b, 0.5, mask)
    torch.testing.assert_close(old, whole_lora)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_rows_are_kept_as_columns_are(dtype: torch.dtype, orthogonal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BLOCK_ENTRIES", 24)  # several blocks of rows
    rng = np.random.default_rng(3)
    old, a, b = make(rng, dtype, 9, 8), make(rng, dtype, 2, 8), make(rng, dtype, 9, 2)
    new = (old.double() + 0.5 * b.double() @ a.double()).to(dtype)
    rows = torch.from_numpy(rng.random(9) < 0.4)
    found = fuse(old, new, rows, orthogonal, units="rows")
    scale = projection_scale(old, new) if orthogonal else torch.zeros(())
    other = (new.double() - scale.double() * old.double()).to(dtype)
    assert torch.equal(found[rows], old[rows])
    torch.testing.assert_close(found[~rows], other[~rows])
    assert torch.equal(fuse(old.T, new.T, rows, orthogonal).T[rows], old[rows])
    written = old.clone()
    lora_fuse_(written, a, b, 0.5, rows, orthogonal, units="rows")
    assert torch.equal(written[rows], old[rows])
    torch.testing.assert_close(written[~rows].double(), other[~rows].double(), rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match=r"retained.*shape \(9,\).*got"):
        fuse(old, new, torch.zeros(8, dtype=torch.bool), units="rows")


def test_parameters_and_transposed_storage_are_fused_in_place() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 6).T)
    old = weight.detach().clone()
    lora_fuse_(weight, torch.ones(1, 4), torch.ones(6, 1), 1.0, torch.zeros(4, dtype=torch.bool), orthogonal=False)
    torch.testing.assert_close(weight.detach(), old + 1.0)


WEIGHT, MASK = torch.ones(2, 3), torch.zeros(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("old", "new", "mask", "message"),
    [
        (torch.ones(3), WEIGHT, MASK, r"weight_prev.*\(r, c\)"),
        (WEIGHT, torch.ones(3, 2), MASK, r"weight_new.*\(2, 3\).*\(3, 2\)"),
        (WEIGHT * float("nan"), WEIGHT, MASK, "weight_prev.*finite"),
        (WEIGHT, WEIGHT * float("inf"), MASK, "weight_new.*finite"),
        (WEIGHT, WEIGHT, torch.zeros(3), "retained.*boolean.*float32"),
        (WEIGHT, WEIGHT, MASK[:2], r"retained.*\(3,\).*\(2,\)"),
        (WEIGHT, [[1.0]], MASK, "weight_new.*list"),
    ],
)
def test_bad_input_is_named(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(old, new, mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_a": torch.ones(1, 2)}, r"lora_a.*\(q, 3\)"),
        ({"lora_b": torch.ones(2, 2)}, r"lora_b.*\(2, 1\)"),
        ({"lora_b": torch.full((2, 1), float("nan"))}, "lora_b.*finite"),
        ({"scaling": float("inf")}, "scaling"),
        ({"retained": torch.ones(3)}, "retained.*boolean"),
    ],
)
def test_lora_fusion_names_bad_input_and_changes_nothing(changes: dict, message: str) -> None:
    weight = torch.ones(2, 3)
    arguments = {"lora_a": torch.ones(1, 3), "lora_b": torch.ones(2, 1), "scaling": 1.0, "retained": MASK}
    with pytest.raises(ValueError, match=message):
        lora_fuse_(weight, **{**arguments, **changes})
    assert torch.equal(weight, torch.ones(2, 3))
