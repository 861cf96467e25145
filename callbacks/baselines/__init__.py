"""The methods that HPA is compared with, one file each; they are attached to a Trainer as HPA's callbacks are."""

from hpa_lightning.callbacks.baselines.constant_refusal import ConstantRefusal
from hpa_lightning.callbacks.baselines.linear_merging import LinearMerging
from hpa_lightning.callbacks.baselines.model_tailor import ModelTailor
from hpa_lightning.callbacks.baselines.olora import OrthogonalLoRA
from hpa_lightning.callbacks.baselines.reglora import RegLoRA
from hpa_lightning.callbacks.baselines.safe_delta import SafeDelta
from hpa_lightning.callbacks.baselines.safety_layer_freezing import SafetyLayerFreezing
from hpa_lightning.callbacks.baselines.task_vectors import TaskVectorMerging

__all__ = [
    "ConstantRefusal",
    "LinearMerging",
    "ModelTailor",
    "OrthogonalLoRA",
    "RegLoRA",
    "SafeDelta",
    "SafetyLayerFreezing",
    "TaskVectorMerging",
]
