"""The embedded benchmark: a small safety-aligned LLaVA, six tasks, three safety sets, an over-refusal set."""

from hpa_lightning.data.nano.datamodule import (
    NANO_BATCH_SIZE,
    NANO_LEARNING_RATE,
    NANO_LORA_ALPHA,
    NANO_LORA_RANK,
    NANO_STEPS,
    NanoDataModule,
)
from hpa_lightning.data.nano.loading import load_nano_model, load_nano_processor

__all__ = [
    "NANO_BATCH_SIZE",
    "NANO_LEARNING_RATE",
    "NANO_LORA_ALPHA",
    "NANO_LORA_RANK",
    "NANO_STEPS",
    "NanoDataModule",
    "load_nano_model",
    "load_nano_processor",
]
