"""The embedded text model with the embedded benchmark's vision tower and a projector that is untrained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor

from hpa_lightning.data.nano.shipped_model import load_nano_model
from hpa_lightning.data.nano.text_loading import TEXT_WEIGHTS
from hpa_lightning.modules.lora import LoraSettings
from hpa_lightning.modules.mllm import MLLMModule
from hpa_lightning.modules.nano_module import schedule_of
from hpa_lightning.modules.preference import PreferenceModule, PreferenceSettings
from hpa_lightning.modules.timm_mllm import TimmMLLM, build_timm_mllm
from hpa_lightning.modules.timm_processor import TimmProcessor
from hpa_lightning.modules.trainable import TrainableParts


def build_nano_adaptation() -> tuple[TimmMLLM, TimmProcessor]:
    """The text model aligned on text alone, the shipped vision tower, an untrained projector; and their processor."""
    seeing, processor = load_nano_model()
    tower = seeing.model.vision_tower
    # The shipped one leaves sizes as they are; a picture of another size would not fit here.
    settings = {**processor.image_processor.to_dict(), "do_resize": True, "do_center_crop": True}
    images = CLIPImageProcessor(**{key: value for key, value in settings.items() if key != "image_processor_type"})
    model, joined = build_timm_mllm(tower.config, str(TEXT_WEIGHTS), feature_layer=-1, image_processor=images)
    model.vision_tower.load_state_dict(tower.state_dict())
    return model, joined


class NanoAdaptationModule(MLLMModule):
    """The embedded text model while it is adapted to pictures; trained by :class:`NanoAdaptationDataModule`'s stages.

    AdamW without weight decay; the learning rate warms up over the first 10 steps and falls linearly to 0.

    Args:
        trainable: what is trained in full, beside LoRA's adapters where there are any.
        learning_rate: the peak.
        lora: adapters on the language model.
        start_from: the checkpoint, or the run's folder, of the stage before; see :class:`MLLMModule`.
    """

    def __init__(
        self,
        trainable: TrainableParts | None = None,
        learning_rate: float = 1e-3,
        lora: LoraSettings | None = None,
        start_from: str | Path | None = None,
    ) -> None:
        super().__init__(**_settings(trainable, learning_rate, lora, start_from))


class NanoAdaptationPreferenceModule(PreferenceModule):
    """:class:`NanoAdaptationModule` for preference pairs: ``NanoAdaptationDataModule(stage="preference")``.

    Args:
        trainable, learning_rate, lora, start_from: see :class:`NanoAdaptationModule`.
        preference: loss and reference. Without ``lora`` it needs a ``reference_cache``.
    """

    def __init__(
        self,
        trainable: TrainableParts | None = None,
        learning_rate: float = 2e-4,
        lora: LoraSettings | None = None,
        start_from: str | Path | None = None,
        preference: PreferenceSettings | None = None,
    ) -> None:
        super().__init__(preference=preference, **_settings(trainable, learning_rate, lora, start_from))


def _settings(
    trainable: TrainableParts | None, learning_rate: float, lora: LoraSettings | None, start_from: str | Path | None
) -> dict[str, Any]:
    model, processor = build_nano_adaptation()
    return {
        "model": model,
        "processor": processor,
        "optimizer": partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0),
        "lr_scheduler": schedule_of,
        "lora": lora,
        "trainable": trainable,
        "start_from": start_from,
    }
