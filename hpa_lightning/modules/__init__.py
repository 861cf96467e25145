"""The LightningModule around multimodal models, the timm-built model, and LoRA."""

from hpa_lightning.modules.assembly import ModelParts
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.emulated_bfloat16 import EmulatedBF16Mixed, EmulatedBF16True
from hpa_lightning.modules.fsdp import mean_gradients_
from hpa_lightning.modules.lora import LoraSettings, add_lora, merge_lora_, restart_lora_
from hpa_lightning.modules.mllm import MLLMModule
from hpa_lightning.modules.nano_adaptation import NanoAdaptationModule, NanoAdaptationPreferenceModule
from hpa_lightning.modules.nano_module import NanoModule, NanoPreferenceModule
from hpa_lightning.modules.osf import OSFSettings, add_osf, merge_osf_, restart_osf_
from hpa_lightning.modules.preference import PreferenceModule, PreferenceSettings
from hpa_lightning.modules.schedules import TaskSchedule, task_length
from hpa_lightning.modules.timm_mllm import TimmMLLM, TimmMLLMConfig, build_timm_mllm
from hpa_lightning.modules.timm_processor import TimmProcessor
from hpa_lightning.modules.token_weights import TokenWeightedModule
from hpa_lightning.modules.trainable import TrainableParts

__all__ = [
    "EmulatedBF16Mixed",
    "EmulatedBF16True",
    "LoraSettings",
    "MLLMModule",
    "ModelParts",
    "NanoAdaptationModule",
    "NanoAdaptationPreferenceModule",
    "NanoModule",
    "NanoPreferenceModule",
    "OSFSettings",
    "PreferenceModule",
    "PreferenceSettings",
    "TaskSchedule",
    "TimmMLLM",
    "TimmMLLMConfig",
    "TimmProcessor",
    "TokenWeightedModule",
    "TrainableParts",
    "add_lora",
    "add_osf",
    "build_timm_mllm",
    "find_decoder_blocks",
    "mean_gradients_",
    "merge_lora_",
    "merge_osf_",
    "restart_lora_",
    "restart_osf_",
    "task_length",
]
