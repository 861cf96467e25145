"""The projection of an adapter's update."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.projected_updates import BOUND

from hpa_lightning.functional import project_lora_


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 16),
    c=st.integers(1, 16),
    q=st.integers(1, 6),
    size=st.sampled_from([0.0, 1e-6, 1.0]),
    kind=st.sampled_from(["random", "same sign", "parallel", "zero base", "frozen columns"]),
    base_dtype=st.sampled_from(ref.FLOATS),
)
def test_lora_update_is_orthogonal_to_the_base(
    seed: int, r: int, c: int, q: int, size: float, kind: str, base_dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    base = torch.from_numpy(rng.standard_normal((r, c))).to(base_dtype)
    a, b = (torch.from_numpy(rng.standard_normal(shape)).float() for shape in ((q, c), (r, q)))
    if kind == "same sign":
        base, a = base.abs(), a.abs()
    elif kind == "parallel":
        b = (base.double() @ a.double().T).float()
    elif kind == "zero base":
        base.zero_()
    elif kind == "frozen columns":
        a[:, rng.random(c) < 0.5] = 0.0
    b *= size
    before, a_before, base_before = b.clone(), a.clone(), base.clone()
    project_lora_(b, a, base)
    assert torch.equal(a, a_before)
    assert torch.equal(base, base_before)
    w, update = ref.array(base), ref.array(b) @ ref.array(a)
    assert abs((update * w).sum()) <= BOUND * np.linalg.norm(update) * np.linalg.norm(w) + 1e-300
    direction = w @ ref.array(a).T
    norm = (direction**2).sum()
    exact = ref.array(before) - ((ref.array(before) * direction).sum() / norm if norm else 0.0) * direction
    # The update, not B: where only B A = 0 is orthogonal, B may become 0.
    terms = np.abs(ref.array(before)) @ np.abs(ref.array(a))
    assert np.abs(update - exact @ ref.array(a)).max() <= 1e-5 * max(terms.max(), 1e-30)
    if kind == "zero base" or size == 0.0:
        assert torch.equal(b, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("seed", range(5))
def test_half_precision_adapters_meet_the_bound(dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, a, b = (torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in ((128, 96), (8, 96), (128, 8)))
    before = b.clone()
    project_lora_(b, a, base)
    update = ref.array(b) @ ref.array(a)
    norms = np.linalg.norm(update) * np.linalg.norm(ref.array(base))
    assert abs((update * ref.array(base)).sum()) <= BOUND * norms
    direction = ref.array(base) @ ref.array(a).T
    exact = ref.array(before) - (ref.array(before) * direction).sum() / (direction**2).sum() * direction
    assert np.linalg.norm(ref.array(b) - exact) <= 0.01 * np.linalg.norm(exact)


def test_bad_factors_are_named() -> None:
    weight = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"lora_a.*\(q, 3\)"):
        project_lora_(torch.ones(2, 1), torch.ones(1, 2), weight)
    with pytest.raises(ValueError, match=r"lora_b.*\(2, 1\)"):
        project_lora_(torch.ones(3, 1), torch.ones(1, 3), weight)
