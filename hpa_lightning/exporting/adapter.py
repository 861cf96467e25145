"""Writing the adapters of a model as a folder that peft loads onto the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpa_lightning.files import whole_folder, write_text
from hpa_lightning.fuse.output import write_tensors
from hpa_lightning.modules.lora import LoraSettings, lora_layers

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."  # of every name in peft's files
_NAMED = 3


def check_base(model: nn.Module, base: nn.Module) -> None:
    """See that a model is its base and nothing but LoRA on it.

    Args:
        model: with LoRA layers.
        base: the model that the adapter would be loaded onto.

    Raises:
        ValueError: no LoRA layer, or weights beside the adapters that are not the base's.
    """
    layers = [name for name, _ in lora_layers(model)]
    if not layers:
        raise ValueError("the run tunes the weights themselves, so there is no adapter; export the whole model.")
    expected = base.state_dict()
    other: list[str] = []
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if name not in expected or not _same(tensor, expected[name]):
            other.append(name)
    if other:
        raise ValueError(
            f"{len(other)} weights beside the adapters are not those of the base, such as "
            f"{', '.join(other[:_NAMED])}: a task's end has merged or fused what was learnt into them, or they were "
            "tuned themselves. An adapter alone would lose that; export the whole model (without --adapter)."
        )


def write_adapter(model: nn.Module, settings: LoraSettings, base: str, folder: str | Path, card: str) -> None:
    """Write ``adapter_config.json``, the factors and the card, as a whole or not at all.

    Args:
        model: with plain LoRA layers, checked by :func:`check_base`.
        settings: of its adapters.
        base: name or folder of the base, for peft's ``base_model_name_or_path``.
        folder: there may be none of that name, or an empty one.
        card: content of ``README.md``.

    Raises:
        ValueError: mixtures of LoRA experts, or the folder is there and not empty.
    """
    factors: dict[str, Tensor] = {}
    names: list[str] = []
    for name, layer in lora_layers(model):
        names.append(name)
        factors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_a.detach()
        factors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_b.detach()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilized,
        "target_modules": names,
        "bias": "none",
        "inference_mode": True,
    }
    with whole_folder(folder) as partial:
        write_tensors(partial / ADAPTER_WEIGHTS, factors, {"format": "pt"})
        write_text(partial / ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")
        write_text(partial / "README.md", card)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other.dtype), other)
