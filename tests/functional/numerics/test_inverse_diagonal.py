"""The diagonal of the inverse, block by block."""

from __future__ import annotations

from support import hpa_reference as ref
from support.calibration_inputs import make_inputs

from hpa_lightning.functional import inverse_hessian_diagonal


def test_many_columns_use_several_blocks_of_the_inverse() -> None:
    x = make_inputs(2, 1200, 1030, dead=0.0, spread=0.5)
    ref.close(inverse_hessian_diagonal(x, 0.01), ref.inverse_diagonal(ref.array(x), 0.01), 1e-9)
