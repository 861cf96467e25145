"""The embedded model as a LightningModule with the settings its benchmark was made with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hpa_lightning.data.nano import (
    NANO_LEARNING_RATE,
    NANO_LORA_ALPHA,
    NANO_LORA_RANK,
    load_nano_model,
)
from hpa_lightning.modules.lora import LoraSettings
from hpa_lightning.modules.mllm import MLLMModule
from hpa_lightning.modules.osf import OSFSettings
from hpa_lightning.modules.preference import PreferenceModule, PreferenceSettings

_WARM_UP_STEPS = 10


class NanoModule(MLLMModule):
    """The embedded safety-aligned model, to be tuned with LoRA on :class:`NanoDataModule`'s tasks.

    AdamW without weight decay; the learning rate warms up over the first 10 steps of a task and falls linearly to 0.

    Args:
        learning_rate: the peak.
        steps: optimizer steps over which the rate falls; those of the task when ``None``.
        lora: the adapters; rank and scale of the benchmark when ``None``.
        osf: instead of adapters, see :class:`MLLMModule`.
    """

    def __init__(
        self,
        learning_rate: float = NANO_LEARNING_RATE,
        steps: int | None = None,
        lora: LoraSettings | None = None,
        osf: OSFSettings | None = None,
    ) -> None:
        settings = _settings(learning_rate, steps, lora)
        if osf is not None:
            settings |= {"osf": osf, "lora": lora}
        super().__init__(**settings)


class NanoPreferenceModule(PreferenceModule):
    """:class:`NanoModule` that trains on preference pairs too, such as ``NanoDataModule(safety_task="preference")``'s.

    Args:
        learning_rate: the peak.
        steps: see :class:`NanoModule`.
        lora: see :class:`NanoModule`.
        preference: loss and reference of the preference tasks.
    """

    def __init__(
        self,
        learning_rate: float = NANO_LEARNING_RATE,
        steps: int | None = None,
        lora: LoraSettings | None = None,
        preference: PreferenceSettings | None = None,
    ) -> None:
        super().__init__(preference=preference, **_settings(learning_rate, steps, lora))


def _settings(learning_rate: float, steps: int | None, lora: LoraSettings | None) -> dict[str, Any]:
    """What the benchmark was made with."""
    model, processor = load_nano_model()
    return {
        "model": model,
        "processor": processor,
        "optimizer": partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0),
        "lr_scheduler": schedule_of if steps is None else partial(schedule_of, num_training_steps=steps),
        "lora": lora or LoraSettings(rank=NANO_LORA_RANK, alpha=NANO_LORA_ALPHA),
    }


def schedule_of(optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
    """Linear warm-up over the first 10 steps, linear decay to 0 at the last one."""
    return LambdaLR(optimizer, partial(_warm_up_and_decay, steps=num_training_steps))


def _warm_up_and_decay(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * max(0.0, 1.0 - step / steps)
