"""Callbacks that keep a multimodal model safe while it is tuned on one task after another.

In-training HPA is the trio :class:`FocusPartition`, :class:`MaskedFreezing`, :class:`OrthogonalProjection`;
post-training HPA is :class:`HarmoniousFusion`. :class:`SequentialTuning` belongs to every run over a task stream.
"""

from hpa_lightning.callbacks.calibrated import CalibrationSettings
from hpa_lightning.callbacks.evaluation import TaskEvaluation
from hpa_lightning.callbacks.freezing import MaskedFreezing
from hpa_lightning.callbacks.fusion import HarmoniousFusion
from hpa_lightning.callbacks.gate import SafetyGate
from hpa_lightning.callbacks.null_space import NullSpaceProjection
from hpa_lightning.callbacks.partition import FocusPartition
from hpa_lightning.callbacks.projection import OrthogonalProjection
from hpa_lightning.callbacks.regression import RegressionFusion
from hpa_lightning.callbacks.resumed import AllowChanges
from hpa_lightning.callbacks.selecting import RetentionSettings
from hpa_lightning.callbacks.sequential import SequentialTuning
from hpa_lightning.callbacks.task import CurrentTask, TaskCallback

__all__ = [
    "AllowChanges",
    "CalibrationSettings",
    "CurrentTask",
    "FocusPartition",
    "HarmoniousFusion",
    "MaskedFreezing",
    "NullSpaceProjection",
    "OrthogonalProjection",
    "RegressionFusion",
    "RetentionSettings",
    "SafetyGate",
    "SequentialTuning",
    "TaskCallback",
    "TaskEvaluation",
]
