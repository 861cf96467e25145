"""Factors in packed triangles: float32 where it holds, float64 where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import hpa_reference as ref
from support.calibration_inputs import make_inputs

from hpa_lightning.functional import inverse_hessian_diagonal
from hpa_lightning.functional.numerics import packed_triangle


@pytest.mark.parametrize(("c", "rank", "spread"), [(300, 16, 0.0), (600, 32, 1.0), (900, 900, 2.0)])
def test_factors_in_float32_where_float64_is_slow(
    c: int, rank: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = make_inputs(7, 2 * c, c, dead=0.02, spread=spread, rank=rank)
    wide = inverse_hessian_diagonal(x.float(), 0.01)
    monkeypatch.setattr(packed_triangle, "float64_is_fast", lambda device: False)
    narrow = inverse_hessian_diagonal(x.float(), 0.01)
    assert not torch.equal(narrow, wide)
    exact = ref.inverse_diagonal(ref.array(x.float()), 0.01)
    inflation = ref.hessian(ref.array(x.float()), 0.01).diagonal() * exact
    assert (np.abs(ref.array(narrow) / exact - 1) < 2e-6 * inflation).all()
    little = inverse_hessian_diagonal(x, 0.001)  # too little damping for it
    monkeypatch.undo()
    assert torch.equal(little, inverse_hessian_diagonal(x, 0.001))


def test_what_float32_cannot_factorise_is_factorised_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(8, 400, 200, dead=0.0, spread=0.0, rank=20).float()
    expected = inverse_hessian_diagonal(x, 0.01)
    monkeypatch.setattr(packed_triangle, "float64_is_fast", lambda device: False)
    factorise = packed_triangle.PackedTriangle.cholesky_
    monkeypatch.setattr(
        packed_triangle.PackedTriangle, "cholesky_", lambda self: self.flat.dtype == torch.float64 and factorise(self)
    )
    assert torch.equal(inverse_hessian_diagonal(x, 0.01), expected)


@pytest.mark.parametrize(("capability", "most"), [("AVX512", 1024), ("AVX2", 256), ("DEFAULT", 256)])
def test_sums_in_float32_are_short_where_vectors_are(
    capability: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    product = packed_triangle.product_of_rows

    def noted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        rows.append(left.shape[1])
        return product(left, right)

    monkeypatch.setattr(packed_triangle, "product_of_rows", noted)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    inverse_hessian_diagonal(make_inputs(7, 4096, 40, dead=0.0, spread=1.0).float(), 0.01)
    assert max(rows) == most and sum(rows) == 4096
