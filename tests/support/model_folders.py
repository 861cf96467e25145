"""Models in folders, before and after tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from hpa_lightning.architectures import auto_class_of


def tuned(model: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """Move every weight, as full-parameter tuning does, by ``size`` times its deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = parameter.float().std().nan_to_num(0.1).clamp(min=0.02)  # of norms and biases it is 0
            noise = torch.randn(parameter.shape, generator=generator) * size * deviation
            parameter.add_(noise.to(parameter.dtype))
    return model


def write(folder: Path, model: Any, processor: Any, shards: str = "60KB") -> Path:
    """Save a model, in shards of that size, and its processor."""
    model.save_pretrained(folder, max_shard_size=shards)
    processor.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    """The model of a folder as transformers loads it."""
    return auto_class_of(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype="auto").eval()
