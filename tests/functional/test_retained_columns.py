from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.projected_updates import make

from hpa_lightning.functional import restore_columns_, zero_columns_


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 8),
    c=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from(ref.FLOATS),
)
def test_columns_are_restored_and_zeroed_bit_for_bit(
    seed: int, r: int, c: int, share: float, dtype: torch.dtype
) -> None:
    new, old, mask = make(seed, r, c, 1.0, dtype, share)
    restored = restore_columns_(new.clone(), old, mask)
    assert torch.equal(restored[:, mask], old[:, mask])
    assert torch.equal(restored[:, ~mask], new[:, ~mask])
    new[0, 0] = float("nan")
    zeroed = zero_columns_(new.clone(), mask)
    assert (zeroed[:, mask] == 0).all()
    assert torch.equal(zeroed[:, ~mask].nan_to_num(7.0), new[:, ~mask].nan_to_num(7.0))


def test_bad_input_of_zeroing_is_named() -> None:
    with pytest.raises(ValueError, match="retained"):
        zero_columns_(torch.ones(2, 4), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="tensor"):
        zero_columns_(torch.tensor(1.0), torch.zeros(3, dtype=torch.bool))
