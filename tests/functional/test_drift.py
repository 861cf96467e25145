"""The drift of hidden states against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpa_lightning.functional.drift import state_cosines


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_cosines_are_those_of_numpy_whatever_the_length(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    before, after = (torch.randn(3, 4, 9, generator=generator).to(dtype) for _ in range(2))
    found = state_cosines(before, after)
    assert found.dtype == torch.float64
    for prompt in range(3):
        for block in range(4):
            a, b = (states[prompt, block].double().numpy() for states in (before, after))
            expected = float(a @ b / np.sqrt((a @ a) * (b @ b)))
            assert float(found[prompt, block]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(state_cosines(before, 4 * after), found)
    assert float(state_cosines(before, before).min()) == pytest.approx(1.0)
    assert float(state_cosines(before, -before).max()) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (torch.zeros(1, 1, 2), torch.ones(1, 1, 2), "before: a hidden state is zero"),
        (torch.ones(1, 1, 2), torch.tensor([[[1.0, torch.inf]]]), "after: a hidden state is zero or not finite"),
        (torch.ones(1, 1, 2), torch.ones(1, 2, 2), r"after: expected a floating-point tensor of shape \(1, 1, 2\)"),
        (torch.ones(0, 1, 2), torch.ones(0, 1, 2), "before: expected"),
    ],
)
def test_states_without_a_direction_and_other_shapes_are_refused(
    before: torch.Tensor, after: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        state_cosines(before, after)
