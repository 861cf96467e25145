"""HPA as pure functions: plain tensors in, plain tensors out, on CPU and CUDA.

Weights are `(out_features, in_features)` = `(r, c)`; masks are boolean `(c,)` over input columns and True
keeps the old column. Any floating dtype comes in; sums and factors are float64, statistics come back as
float32 (float64 for float64 inputs), weights in their own dtype after one cast. No function builds a graph but the
losses of `preference_loss.py`; none touches global state, and what draws random numbers takes a generator; in-place
functions end in `_`.
"""

from hpa_lightning.functional.bounded_update import (
    InputSpectrum,
    adapter_gram,
    damp_directions_,
    directions_that_tell,
    energies_along,
    input_spectrum,
    leave_directions,
    left_factors,
    nearest_in_budget,
    output_energy,
)
from hpa_lightning.functional.brain_surgeon import surgeon_factor
from hpa_lightning.functional.delta_selection import safe_delta
from hpa_lightning.functional.drift import state_cosines
from hpa_lightning.functional.focus import (
    column_energy,
    column_focus,
    lora_column_energy,
    lora_row_focus,
    row_focus,
    update_focus,
)
from hpa_lightning.functional.fusion import Units, fuse, lora_fuse_, orthogonal_update, projection_scale
from hpa_lightning.functional.hessian import HessianAccumulator, inverse_hessian_diagonal
from hpa_lightning.functional.hpa import RetentionSettings, focus_partition, freeze_columns_, harmonious_fusion
from hpa_lightning.functional.lora_projection import LoraTensors, project_lora_, project_lora_updates_
from hpa_lightning.functional.merging import (
    LoraUpdate,
    dense_update,
    lora_update,
    merge_linearly,
    merge_spherically,
)
from hpa_lightning.functional.model_patch import model_tailor
from hpa_lightning.functional.preference_loss import answer_log_probabilities, preference_loss
from hpa_lightning.functional.projection import UpdateProjection, project_update_
from hpa_lightning.functional.regression import regression_fusion, regression_map
from hpa_lightning.functional.retained_columns import restore_columns_, zero_columns_
from hpa_lightning.functional.selection import (
    balance_coefficient,
    columns_by_rule,
    partition_columns,
    retained_columns,
    retention_percent,
    top_columns,
)
from hpa_lightning.functional.sketch import InputSketch
from hpa_lightning.functional.sketched_regression import sketched_regression_map
from hpa_lightning.functional.subspace import (
    dominant_subspace,
    half_precision_basis,
    half_precision_copy,
    joint_basis,
    leave_subspace_,
    null_space_projection_,
)
from hpa_lightning.functional.vector_merging import (
    MajoritySign,
    MergingConvention,
    MergingMethod,
    Rescale,
    check_merging,
    merge_task_vectors,
)

__all__ = [
    "HessianAccumulator",
    "InputSketch",
    "InputSpectrum",
    "LoraTensors",
    "LoraUpdate",
    "MajoritySign",
    "MergingConvention",
    "MergingMethod",
    "Rescale",
    "RetentionSettings",
    "Units",
    "UpdateProjection",
    "adapter_gram",
    "answer_log_probabilities",
    "balance_coefficient",
    "check_merging",
    "column_energy",
    "column_focus",
    "columns_by_rule",
    "damp_directions_",
    "dense_update",
    "directions_that_tell",
    "dominant_subspace",
    "energies_along",
    "focus_partition",
    "freeze_columns_",
    "fuse",
    "half_precision_basis",
    "half_precision_copy",
    "harmonious_fusion",
    "input_spectrum",
    "inverse_hessian_diagonal",
    "joint_basis",
    "leave_directions",
    "leave_subspace_",
    "left_factors",
    "lora_column_energy",
    "lora_fuse_",
    "lora_row_focus",
    "lora_update",
    "merge_linearly",
    "merge_spherically",
    "merge_task_vectors",
    "model_tailor",
    "nearest_in_budget",
    "null_space_projection_",
    "orthogonal_update",
    "output_energy",
    "partition_columns",
    "preference_loss",
    "project_lora_",
    "project_lora_updates_",
    "project_update_",
    "projection_scale",
    "regression_fusion",
    "regression_map",
    "restore_columns_",
    "retained_columns",
    "retention_percent",
    "row_focus",
    "safe_delta",
    "sketched_regression_map",
    "state_cosines",
    "surgeon_factor",
    "top_columns",
    "update_focus",
    "zero_columns_",
]
