"""Callbacks that keep a multimodal model safe while it is tuned on one task after another.

In-training HPA is the trio :class:`FocusPartition`, :class:`MaskedFreezing`, :class:`OrthogonalProjection`;
post-training HPA is :class:`HarmoniousFusion`. :class:`SequentialTuning` belongs to every run over a task stream.
"""

from hpa_lightning.callbacks.allow_changes import AllowChanges
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.focus_partition import FocusPartition
from hpa_lightning.callbacks.harmonious_fusion import HarmoniousFusion
from hpa_lightning.callbacks.layer_drift import LayerDrift
from hpa_lightning.callbacks.masked_freezing import MaskedFreezing
from hpa_lightning.callbacks.null_space_projection import NullSpaceProjection
from hpa_lightning.callbacks.orthogonal_projection import OrthogonalProjection
from hpa_lightning.callbacks.regression_fusion import RegressionFusion
from hpa_lightning.callbacks.safety_curve import SafetyCurve
from hpa_lightning.callbacks.safety_gate import SafetyGate
from hpa_lightning.callbacks.sequential_tuning import SequentialTuning
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_evaluation import TaskEvaluation
from hpa_lightning.functional import RetentionSettings

__all__ = [
    "AllowChanges",
    "CalibrationSettings",
    "CurrentTask",
    "FocusPartition",
    "HarmoniousFusion",
    "LayerDrift",
    "MaskedFreezing",
    "NullSpaceProjection",
    "OrthogonalProjection",
    "RegressionFusion",
    "RetentionSettings",
    "SafetyCurve",
    "SafetyGate",
    "SequentialTuning",
    "TaskCallback",
    "TaskEvaluation",
]
