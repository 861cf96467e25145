from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.projected_updates import BOUND, cosine, make

from hpa_lightning.functional import project_update_, restore_columns_
from hpa_lightning.functional.numerics import checks
from hpa_lightning.functional.numerics.rounding import rounding_slots


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 24),
    c=st.integers(1, 24),
    size=st.sampled_from([0.0, 1e-7, 1e-6, 1e-4, 1e-2, 1.0, 100.0]),
    dtype=st.sampled_from(ref.FLOATS),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    kind=st.sampled_from(["random", "parallel", "ones", "zero weight", "zero free", "sparse"]),
)
def test_guarantees_hold_for_the_stored_weight(
    seed: int, r: int, c: int, size: float, dtype: torch.dtype, share: float, kind: str
) -> None:
    new, old, mask = make(seed, r, c, size, dtype, share)
    if kind == "parallel":
        new = ((1.0 + size) * old.double()).to(dtype)
    elif kind == "ones":
        new, old = new - old + 1.0, torch.ones_like(old)
    elif kind == "zero weight":
        old = torch.zeros_like(old)
    elif kind == "zero free":
        old[:, ~mask] = 0.0
    elif kind == "sparse":
        new[old.abs() < 1.0] = 0.0
        old[old.abs() < 1.0] = 0.0
    before = new.clone()
    project_update_(new, old, mask)
    assert torch.isfinite(new).all()
    assert torch.equal(new[:, mask], old[:, mask])
    assert cosine(new, old) <= BOUND
    if kind in ("zero weight", "zero free"):
        assert torch.equal(new[:, ~mask], before[:, ~mask])
    if size == 0.0 and kind in ("random", "parallel"):
        assert torch.equal(new, old)


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_small_updates_survive_the_repair(dtype: torch.dtype, size: float) -> None:
    new, old, mask = make(0, 256, 192, size, dtype, 0.1)
    delta = (ref.array(new) - ref.array(old)) * ~mask.numpy()
    free = ref.array(old) * ~mask.numpy()
    exact = delta - (delta * free).sum() / (free**2).sum() * free
    project_update_(new, old, mask)
    assert cosine(new, old) <= BOUND
    moved = ref.array(new) - ref.array(old)
    # Off the exact projection by rounding: half an ulp everywhere, and the repair on a few entries.
    ulp = torch.finfo(dtype).eps * np.linalg.norm(free)
    assert np.linalg.norm(moved - exact) <= 0.5 * ulp + 0.05 * np.linalg.norm(exact)
    if size > torch.finfo(dtype).eps:
        assert np.linalg.norm(moved) > 0.5 * np.linalg.norm(exact)


def test_a_plain_projection_would_miss_the_bound() -> None:
    # The reason for the repair: projected exactly, then rounded once, the stored update is not orthogonal.
    new, old, _ = make(1, 64, 64, 1e-6, torch.float32, 0.0)
    w, d = old.double(), new.double() - old.double()
    plain = (w + d - (d * w).sum() / w.square().sum() * w).float()
    assert cosine(plain, old) > BOUND
    project_update_(new, old)
    assert cosine(new, old) <= BOUND


def test_removed_share_is_the_free_columns_projection_scale() -> None:
    new, old, mask = make(2, 8, 6, 0.3, torch.float64, 0.4)
    free = ref.array(old) * ~mask.numpy()
    expected = ((ref.array(new) - ref.array(old)) * free).sum() / (free**2).sum()
    assert float(project_update_(new, old, mask)) == pytest.approx(expected, rel=1e-9)


def test_divergence_stays_visible() -> None:
    new, old, _ = make(3, 8, 6, 0.3, torch.float32, 0.0)
    new[0, 0] = float("nan")
    project_update_(new, old)
    assert torch.isnan(new).any()


def test_transposed_storage_and_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old, mask = make(4, 33, 20, 1e-4, torch.float32, 0.2)
    turned, expected = new.T.contiguous().T, new.clone()
    project_update_(expected, old, mask)
    monkeypatch.setattr(checks, "BLOCK_ENTRIES", 60)
    project_update_(turned, old, mask)
    assert cosine(turned, old) <= BOUND
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-6)


WEIGHT, MASK = torch.ones(2, 3), torch.zeros(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("weight", "old", "mask", "message"),
    [
        (torch.ones(3, 2), WEIGHT, MASK, r"weight:.*\(2, 3\).*\(3, 2\)"),
        (WEIGHT.bfloat16(), WEIGHT, MASK, "same dtype.*bfloat16.*float32"),
        (WEIGHT, WEIGHT.long(), MASK, "weight_prev.*floating-point"),
        (WEIGHT, WEIGHT, torch.zeros(3), "retained.*boolean"),
        (WEIGHT, WEIGHT, torch.zeros(2, dtype=torch.bool), r"retained.*\(3,\)"),
        (WEIGHT, WEIGHT.to("meta"), MASK, "on meta"),
    ],
)
def test_bad_input_is_named(weight: torch.Tensor, old: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    for function in (project_update_, restore_columns_):
        with pytest.raises(ValueError, match=message):
            function(weight.clone(), old, mask)


def test_a_mask_of_another_length_has_no_slots() -> None:
    with pytest.raises(ValueError, match="retained"):
        rounding_slots(WEIGHT, torch.zeros(2, dtype=torch.bool))
