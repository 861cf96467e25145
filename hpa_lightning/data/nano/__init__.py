"""The embedded benchmark: a small safety-aligned LLaVA, six tasks, three safety sets, an over-refusal set."""

from hpa_lightning.data.nano.adaptation import ADAPTATION_STEPS, NanoAdaptationDataModule
from hpa_lightning.data.nano.nano_datamodule import (
    NANO_BATCH_SIZE,
    NANO_LEARNING_RATE,
    NANO_LORA_ALPHA,
    NANO_LORA_RANK,
    NANO_STEPS,
    NanoDataModule,
)
from hpa_lightning.data.nano.shipped_model import load_nano_model, load_nano_processor
from hpa_lightning.data.nano.text_loading import load_nano_text_model

__all__ = [
    "ADAPTATION_STEPS",
    "NANO_BATCH_SIZE",
    "NANO_LEARNING_RATE",
    "NANO_LORA_ALPHA",
    "NANO_LORA_RANK",
    "NANO_STEPS",
    "NanoAdaptationDataModule",
    "NanoDataModule",
    "load_nano_model",
    "load_nano_processor",
    "load_nano_text_model",
]
