"""Running a model over calibration batches, one decoder block at a time."""

from hpa_lightning.calibration.hessians import (
    DummyBatch,
    inverse_hessian_diagonals,
    shared_inverse_diagonals,
    uncompiled,
    visit_hessians,
    visit_inputs,
)
from hpa_lightning.calibration.input_recorder import Accumulator

__all__ = [
    "Accumulator",
    "DummyBatch",
    "inverse_hessian_diagonals",
    "shared_inverse_diagonals",
    "uncompiled",
    "visit_hessians",
    "visit_inputs",
]
