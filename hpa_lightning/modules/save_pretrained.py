"""Writing a tuned model as one standard Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpa_lightning import functional as F
from hpa_lightning.files import whole_folder, write_text
from hpa_lightning.modules.fsdp import full_tensor, is_sharded
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.modules.osf import OSF_KEPT, OSF_TRAINED, has_osf, osf_layers, osf_weight


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of ``model`` under their names without adapters, every adapter merged in fp32.

    The model itself is not changed; memory beyond it is that of the merged layers, or of the whole model in host memory
    where it is sharded. All its processes have to call this then.
    """
    merged: dict[str, Tensor] = {}
    if has_osf(model):
        return _merged_osf(model)
    layers = dict(lora_layers(model))
    sharded = is_sharded(model)
    for name, tensor in model.state_dict().items():
        tensor = full_tensor(tensor)
        owner, _, leaf = name.partition(".base_layer.")
        if leaf and owner in layers:
            if leaf == "weight":
                factors = layers[owner]
                a, b = (full_tensor(factor.detach()) for factor in (factors.lora_a, factors.lora_b))
                tensor = (tensor.float() + F.lora_update(a, b, factors.scaling)).to(tensor.dtype)
            name = f"{owner}.{leaf}"
        elif any(name.startswith(f"{layer}.lora_") for layer in _owners(name, layers)):
            continue
        merged[name] = tensor.cpu() if sharded else tensor
    return merged


def _merged_osf(model: nn.Module) -> dict[str, Tensor]:
    layers = dict(osf_layers(model))
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.partition(".base_layer.")
        if leaf and owner in layers:
            merged[f"{owner}.{leaf}"] = osf_weight(layers[owner]) if leaf == "weight" else tensor
        elif OSF_TRAINED not in name and f".{OSF_KEPT}" not in name:
            merged[name] = tensor
    return merged


def export_model(model: Any, processor: Any, folder: str | Path, write: bool = True, card: str | None = None) -> None:
    """Write the model's configuration, its merged weights and the processor into ``folder``, as a whole or not at all.

    ``write=False`` is for the processes that only help to gather a sharded model; ``card`` is the content of
    ``README.md``.

    Raises:
        ValueError: the model cannot be saved as a Hugging Face folder, or has mixtures of LoRA experts, which cannot be
            merged, or the folder is there and not empty; nothing is written then.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} has no save_pretrained; expected a Hugging Face model.")
    with torch.no_grad():
        merged = merged_state_dict(model)
        if not write:
            return
        with whole_folder(folder) as partial:
            model.save_pretrained(partial, state_dict=merged)
            processor.save_pretrained(partial)
            if card is not None:
                write_text(partial / "README.md", card)


def _owners(name: str, layers: dict[str, Any]) -> list[str]:
    """Return the LoRA layer that the parameter ``name`` belongs to, if any."""
    owner = name.partition(".lora_")[0]
    return [owner] if owner in layers else []
