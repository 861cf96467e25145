"""Writing a tuned model as one standard Hugging Face folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftMixedModel, PeftModel
from peft.tuners.osf.layer import OSFLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from hpa_lightning import functional as F
from hpa_lightning.files import whole_folder, write_text
from hpa_lightning.modules.fsdp import full_tensor, is_sharded
from hpa_lightning.modules.linear_names import uncompiled_name
from hpa_lightning.modules.lora import LoraFactors, lora_factors
from hpa_lightning.modules.osf import osf_weight

_BASE_WEIGHT = "base_layer.weight"


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of ``model`` under their names without adapters, every adapter merged in fp32.

    Modules that peft trains whole (``modules_to_save``) and rows of embeddings (``trainable_token_indices``) stand in
    the place of the originals; names are those of the model inside a ``PeftModel``, and as they are where nothing is
    compiled. The model itself is not changed;
    memory beyond it is that of the merged layers, or of the whole model in host memory where it is sharded. All its
    processes have to call this then.

    Raises:
        ValueError: an adapter that cannot be merged: naming it.
    """
    model = _inside_peft_model(model)
    _check_peft_modules(model)
    layers = _adapted_layers(model)
    wrappers = _wrappers(model)
    merged: dict[str, Tensor] = {}
    sharded = is_sharded(model)
    for name, tensor in model.state_dict().items():
        tensor = full_tensor(tensor)
        owner, leaf = _split(name, layers)
        plain = _plain_name(name if owner is None else f"{owner}.{leaf.removeprefix('base_layer.')}", wrappers)
        if plain is None or (owner is not None and not leaf.startswith("base_layer.")):
            continue
        if owner is not None and leaf == _BASE_WEIGHT:
            tensor = layers[owner](tensor)
        merged[uncompiled_name(plain)] = tensor.cpu() if sharded else tensor
    return merged


def export_model(model: Any, processor: Any, folder: str | Path, write: bool = True, card: str | None = None) -> None:
    """Write the model's configuration, its merged weights and the processor into ``folder``, as a whole or not at all.

    ``write=False`` is for the processes that only help to gather a sharded model; ``card`` is the content of
    ``README.md``.

    Raises:
        ValueError: the model cannot be saved as a Hugging Face folder, or has adapters that cannot be merged (mixtures
            of LoRA experts, any but plain LoRA), or the folder is there and not empty; nothing is written then.
    """
    model = _inside_peft_model(model)
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} has no save_pretrained; expected a Hugging Face model.")
    with torch.no_grad():
        merged = merged_state_dict(model)
        if not write:
            return
        untied = _untied(model, merged)
        with whole_folder(folder) as unfinished:
            with _saved_whole(model):
                model.save_pretrained(unfinished, state_dict=merged)
            if untied is not None:
                untied.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
            if card is not None:
                write_text(unfinished / "README.md", card)


def _inside_peft_model(model: Any) -> Any:
    """Return the model that peft has wrapped, or ``model`` itself.

    Raises:
        ValueError: the wrapper has parameters of its own (prompt tuning and the like), which have no place in it.
    """
    model = _uncompiled(model)
    if not isinstance(model, PeftModel | PeftMixedModel):
        return model
    base = _uncompiled(model.get_base_model() if isinstance(model, PeftModel) else model.base_model.model)
    inside = {id(parameter) for parameter in base.parameters()}
    outside = [name for name, parameter in model.named_parameters() if id(parameter) not in inside]
    if outside:
        kinds = ", ".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in model.peft_config.values()}))
        raise ValueError(
            f"{outside[0]}: peft's {kinds} tunes it beside the model's weights, so it cannot be merged into them; "
            "expected plain LoRA. Save such a tuning with peft's own save_pretrained."
        )
    return base


def _uncompiled(model: Any) -> Any:
    """The model that ``torch.compile`` has wrapped, or ``model`` itself."""
    return getattr(model, "_orig_mod", model)


def _check_peft_modules(model: nn.Module) -> None:
    """Refuse modules of peft that are neither layers with an adapter nor wrappers of trained modules."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside or ("\0",)) or not type(module).__module__.startswith("peft."):
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
        elif not isinstance(module, AuxiliaryTrainingWrapper | nn.ModuleDict | nn.ParameterDict):
            raise ValueError(f"{name}: the adapter is a {type(module).__name__}, which cannot be merged.")


def _adapted_layers(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name of every layer with an adapter -> what makes the merged weight of its base weight."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, OSFLayer):
            found[name] = partial(_with_osf, layer=module)
        elif isinstance(module, TrainableTokensLayer):
            found[name] = partial(_with_tokens, layer=module)
        elif (factors := lora_factors(module, name)) is not None:
            found[name] = partial(_with_update, factors=factors)
        if name in found and isinstance(module.base_layer, BaseTunerLayer):
            raise ValueError(f"{name}: two adapters of peft, one on the other; expected one on each layer.")
    return found


def _with_osf(weight: Tensor, layer: OSFLayer) -> Tensor:
    return osf_weight(layer).to(weight.device)


def _with_update(weight: Tensor, factors: LoraFactors) -> Tensor:
    a, b = (full_tensor(factor.detach()) for factor in (factors.lora_a, factors.lora_b))
    return (weight.float() + F.lora_update(a, b, factors.scaling)).to(weight.dtype)


def _with_tokens(weight: Tensor, layer: TrainableTokensLayer) -> Tensor:
    for adapter in layer.active_adapters:
        if adapter in layer.trainable_tokens_delta:
            rows = torch.tensor(layer.token_indices[adapter], device=weight.device)
            weight = weight.index_copy(0, rows, full_tensor(layer.trainable_tokens_delta[adapter].detach()).to(weight))
    return weight


def _split(name: str, layers: Container[str]) -> tuple[str | None, str]:
    """Return the layer with an adapter that the tensor ``name`` is in, if any, and its name there."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if (owner := ".".join(parts[:end])) in layers:
            return owner, ".".join(parts[end:])
    return None, name


def _wrappers(model: nn.Module) -> list[tuple[str, str]]:
    """Name of every module that peft has wrapped to train it, and where in it the active copy is; innermost first."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            found.append((f"{name}.", "token_adapter."))
        elif isinstance(module, ModulesToSaveWrapper):
            active = [adapter for adapter in module.active_adapters if adapter in module.modules_to_save]
            found.append((f"{name}.", f"modules_to_save.{active[0]}." if active else "original_module."))
        elif isinstance(module, AuxiliaryTrainingWrapper):
            raise ValueError(f"{name}: peft's {type(module).__name__} is not known here and cannot be merged.")
    return found[::-1]


def _plain_name(name: str, wrappers: Iterable[tuple[str, str]]) -> str | None:
    """Return the name that the tensor has without peft's wrappers; ``None`` for a copy that is not in use."""
    for owner, active in wrappers:
        if name.startswith(owner):
            inner = name.removeprefix(owner)
            if not inner.startswith(active):
                return None
            name = owner + inner.removeprefix(active)
    return name


@contextmanager
def _saved_whole(model: Any) -> Iterator[None]:
    """Let ``save_pretrained`` write the model that it is given, where ``add_adapter`` made it write adapters alone."""
    before = getattr(model, "_hf_peft_config_loaded", False)
    try:
        if before:
            model._hf_peft_config_loaded = False
        yield
    finally:
        if before:
            model._hf_peft_config_loaded = before


def _untied(model: Any, merged: dict[str, Tensor]) -> Any:
    """Return the configuration without ties where a merged weight differs from the one that it was tied to.

    Copies that are equal become one tensor again in ``merged``. ``None`` where all ties hold.

    Raises:
        ValueError: no ``tie_word_embeddings`` of the configuration says that they are tied.
    """
    differ = []
    for name, other in getattr(model, "all_tied_weights_keys", {}).items():
        one, two = merged.get(name), merged.get(other)
        if one is None or two is None or one.data_ptr() == two.data_ptr():
            continue
        if one.dtype == two.dtype and torch.equal(one, two):
            merged[name] = two
        else:
            differ.append(f"{name} and {other}")
    if not differ:
        return None
    config = copy.deepcopy(model.config)
    ties = [one for one in (config, config.get_text_config()) if getattr(one, "tie_word_embeddings", False)]
    if not ties:
        raise ValueError(
            f"{', '.join(differ)} are one weight in the model and two after merging, and no tie_word_embeddings of its "
            "configuration says so; expected weights of their own under an adapter."
        )
    for one in ties:
        one.tie_word_embeddings = False
    warnings.warn(
        f"{', '.join(differ)} were tied and are not after merging: both are written, and config.json says "
        "tie_word_embeddings=false.",
        stacklevel=4,
    )
    return config
