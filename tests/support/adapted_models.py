"""The foreign language model with adapters."""

from __future__ import annotations

import torch
from support.foreign_module import LanguageModel

from hpa_lightning.modules.lora import LoraSettings, add_lora


def adapted(**settings: object) -> LanguageModel:
    torch.manual_seed(0)
    model = add_lora(LanguageModel().eval(), LoraSettings(rank=3, **settings))  # type: ignore[arg-type]
    assert isinstance(model, LanguageModel)
    return model
