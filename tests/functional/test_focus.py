from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref

from hpa_lightning.functional import column_energy, column_focus, lora_column_energy, lora_row_focus, row_focus

dims = st.integers(1, 12)


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=dims,
    c=dims,
    size=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    dtype=st.sampled_from(ref.FLOATS),
)
def test_column_focus_matches_loops(seed: int, r: int, c: int, size: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    delta = torch.from_numpy(size * rng.standard_normal((r, c))).to(dtype)
    inverse = torch.from_numpy(10.0 ** rng.uniform(-3, 3, c)).float()
    result = column_focus(column_energy(delta), inverse)
    assert result.dtype == torch.float32
    ref.close(result, ref.focus(ref.array(delta), ref.array(inverse)))


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=dims,
    c=dims,
    q=st.integers(1, 8),
    scaling=st.sampled_from([0.0, 0.25, 1.0, 2.0, -1.5]),
    dtype=st.sampled_from(ref.FLOATS),
)
def test_lora_focus_equals_the_dense_one(seed: int, r: int, c: int, q: int, scaling: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in ((q, c), (r, q)))
    a[:, rng.random(c) < 0.2] = 0.0
    inverse = torch.from_numpy(10.0 ** rng.uniform(-3, 3, c)).float()
    result = column_focus(lora_column_energy(a, b, scaling), inverse)
    ref.close(result, ref.focus(scaling * ref.array(b) @ ref.array(a), ref.array(inverse)))


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=dims,
    c=dims,
    q=st.integers(1, 8),
    scaling=st.sampled_from([0.0, 0.25, 1.0, -1.5]),
    dtype=st.sampled_from(ref.FLOATS),
)
def test_row_focus_matches_loops_and_its_lora_form(
    seed: int, r: int, c: int, q: int, scaling: float, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in ((q, c), (r, q)))
    inverse = torch.from_numpy(10.0 ** rng.uniform(-3, 3, c)).float()
    update = scaling * ref.array(b) @ ref.array(a)
    expected = [sum(update[i, j] ** 2 / float(inverse[j]) for j in range(c)) / c for i in range(r)]
    ref.close(lora_row_focus(a, b, scaling, inverse), np.array(expected))
    ref.close(row_focus(torch.from_numpy(update), inverse), np.array(expected))


def test_row_focus_names_bad_input() -> None:
    good = torch.ones(2, 3)
    for delta, inverse, message in (
        (good, torch.ones(2), r"inverse_diagonal.*\(3,\).*\(2,\)"),
        (torch.full((2, 3), float("inf")), torch.ones(3), "delta.*finite"),
        (good, -torch.ones(3), "inverse_diagonal.*positive"),
    ):
        with pytest.raises(ValueError, match=message):
            row_focus(delta, inverse)
    with pytest.raises(ValueError, match="lora_b"):
        lora_row_focus(good, torch.ones(2, 3), 1.0, torch.ones(3))


def test_sums_over_many_rows_stay_accurate() -> None:
    for rows in (20_000, 200_000):  # the larger one in float32
        delta = torch.full((rows, 2), 0.1)
        ref.close(column_energy(delta), np.full(2, float(delta[0, 0]) ** 2), 1e-6)


@pytest.mark.parametrize(
    ("delta", "inverse", "message"),
    [
        (torch.ones(3), torch.ones(3), r"delta.*\(r, c\)"),
        (torch.ones(2, 3), torch.ones(2), r"inverse_diagonal.*\(3,\).*\(2,\)"),
        (torch.ones(2, 3).long(), torch.ones(3), "floating-point"),
        (torch.full((2, 3), float("nan")), torch.ones(3), "delta.*finite"),
        (torch.ones(2, 3), torch.full((3,), float("inf")), "inverse_diagonal.*finite"),
        (torch.ones(2, 3), torch.zeros(3), "inverse_diagonal.*positive"),
    ],
)
def test_bad_input_is_named(delta: torch.Tensor, inverse: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        column_focus(column_energy(delta), inverse)


def test_lora_focus_names_bad_input() -> None:
    a, b = torch.ones(2, 3), torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"lora_b.*\(r, 2\)"):
        lora_column_energy(a, b.T, 1.0)
    with pytest.raises(ValueError, match="scaling"):
        lora_column_energy(a, b, float("nan"))
    with pytest.raises(ValueError, match=r"lora_a.*finite"):
        lora_column_energy(a * float("inf"), b, 1.0)
