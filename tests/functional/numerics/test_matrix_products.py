"""Products of large matrices: the quick direction, and cards with slow float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import hpa_reference as ref

from hpa_lightning.functional.numerics import matrix_products


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_quick_direction_of_a_large_weight(
    dtype: torch.dtype, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr(matrix_products, "onednn_linear", lambda: None)
    monkeypatch.setattr(matrix_products, "_CPU_CONVERTED_ENTRIES", 100 * 320)  # the last part is shorter
    weight, a = torch.randn(250, 320).to(dtype), torch.randn(8, 320).to(dtype)
    found = matrix_products.quick_direction(weight, a)
    exact = ref.array(weight) @ ref.array(a).T
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - exact).max() < 1e-6 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("capability", "fast"), [((8, 0), True), ((9, 0), True), ((7, 5), False), ((8, 6), False), ((8, 9), False)]
)
def test_cards_with_slow_float64(capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert matrix_products.float64_is_fast(torch.device("cuda")) is fast
    assert matrix_products.float64_is_fast(torch.device("cpu"))
