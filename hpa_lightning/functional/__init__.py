"""HPA as pure functions: plain tensors in, plain tensors out, on CPU and CUDA.

Weights are `(out_features, in_features)` = `(r, c)`; masks are boolean `(c,)` over input columns and True
keeps the old column. Any floating dtype comes in; sums and factors are float64, statistics come back as
float32 (float64 for float64 inputs), weights in their own dtype after one cast. No function builds a graph,
draws a random number or touches global state; in-place functions end in `_`.
"""

from hpa_lightning.functional.focus import column_focus, lora_column_focus
from hpa_lightning.functional.fusion import fuse, lora_fuse_, orthogonal_update, projection_scale
from hpa_lightning.functional.hessian import HessianAccumulator, inverse_hessian_diagonal
from hpa_lightning.functional.projection import (
    project_lora_,
    project_update_,
    restore_columns_,
    zero_columns_,
)
from hpa_lightning.functional.rounding import RoundingSlots, rounding_slots
from hpa_lightning.functional.selection import (
    balance_coefficient,
    partition_columns,
    retained_columns,
    retention_percent,
)

__all__ = [
    "HessianAccumulator",
    "RoundingSlots",
    "balance_coefficient",
    "column_focus",
    "fuse",
    "inverse_hessian_diagonal",
    "lora_column_focus",
    "lora_fuse_",
    "orthogonal_update",
    "partition_columns",
    "project_lora_",
    "project_update_",
    "projection_scale",
    "restore_columns_",
    "retained_columns",
    "retention_percent",
    "rounding_slots",
    "zero_columns_",
]
