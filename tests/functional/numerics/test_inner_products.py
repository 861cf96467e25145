"""Inner products of weights against float64 NumPy, below and above the size from which products are float32."""

from __future__ import annotations

import pytest
import torch

from hpa_lightning.functional.numerics import inner_products


@pytest.mark.parametrize("shape", [(5, 7), (301, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_are_those_of_numpy(shape: tuple[int, int], dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    old = torch.randn(shape, generator=generator).to(dtype)
    new = (old.float() + 0.01 * torch.randn(shape, generator=generator)).to(dtype)
    retained = torch.rand(shape[1], generator=generator) < 0.4 if masked else None
    free = ~retained.numpy() if retained is not None else slice(None)
    a, b = (weight.double().numpy()[:, free] for weight in (old, new))
    size = float((a * a).sum())
    assert float(inner_products.square_sum(old, retained)) == pytest.approx(size, rel=2e-5)
    found = inner_products.update_product(new, old, retained)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(((b - a) * a).sum()), abs=2e-6 * size)
    columns = inner_products.column_square_sums(old)
    torch.testing.assert_close(columns, old.double().square().sum(0), rtol=1e-5, atol=0.0)


def test_nothing_that_is_free_sums_to_zero() -> None:
    weight, all_of_it = torch.randn(3, 4), torch.ones(4, dtype=torch.bool)
    assert float(inner_products.square_sum(weight, all_of_it)) == 0.0
    assert float(inner_products.update_product(weight + 1, weight, all_of_it)) == 0.0


def test_the_rows_of_a_weight_are_each_taken_once() -> None:
    weight = torch.empty(1000, 700)
    rows = [row for lines in inner_products.row_chunks(weight) for row in range(1000)[lines]]
    assert rows == list(range(1000))
