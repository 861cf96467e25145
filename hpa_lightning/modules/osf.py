"""OSF through peft: a layer's lesser singular directions are tuned, the greater ones are kept (a baseline).

With ``W = U diag(s) V`` the first ``effective_rank`` singular triples stay as they are; ``U_low (rows, q)``,
``S_low (q,)`` and ``V_low (q, columns)`` of the others are trained, and peft's hooks keep their gradients orthogonal to
the first. What a step computes is peft's code alone; here is what happens between two tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from peft import OSFConfig, inject_adapter_in_model
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.osf.layer import OSFLayer
from peft.tuners.osf.utils import decompose_weight_matrix
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hpa_lightning.modules.linear_names import linear_names
from hpa_lightning.modules.moe_lora import has_mixtures

OSF_TRAINED = ".osf_svd_params."
"""In the names of what is trained."""
OSF_KEPT = "_osf_"
"""In the names of the decomposition, before training."""

_KEPT = ("_osf_U_low_init", "_osf_S_low_init", "_osf_V_low_init", "_osf_U_high", "_osf_V_high")


@dataclass(frozen=True)
class OSFSettings:
    """OSF on the linear layers of the language model's decoder blocks (``peft.OSFConfig``).

    Source: Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning" (arXiv
    2504.07097), as peft has it. The rank is the same for all tasks.

    Args:
        effective_rank: what is kept of each layer: a number of singular directions (a whole number), or a fraction of
            the smaller side of the weight, in (0, 1). ``None``: peft's half.
        target_modules: last names of the linear layers; ``None`` takes every linear layer of the decoder blocks.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Raises:
        ValueError: a rank that leaves nothing to keep, or nothing to train.
    """

    effective_rank: int | float | None = None
    target_modules: list[str] | None = None
    blocks: str | None = None

    def __post_init__(self) -> None:
        rank = self.effective_rank
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        if rank is None or whole or (isinstance(rank, float) and 0.0 < rank < 1.0):
            return
        raise ValueError(
            f"OSF: effective_rank is {rank!r}; expected a whole number of directions from 1 on, a fraction in (0, 1), "
            "or nothing for the half."
        )


def add_osf(model: nn.Module, settings: OSFSettings) -> nn.Module:
    """Inject OSF layers in place, freeze every other parameter and return ``model``.

    The decompositions are part of the model's state, so that a fit that is resumed goes on with the same ones.

    Raises:
        ValueError: peft is older than 0.21, the model has adapters already, no linear layer matches, a layer that is
            quantised, or one of whose directions nothing would be kept or nothing trained.
    """
    if "_osf_U_low_init" not in OSFLayer.other_param_names:
        raise ValueError(
            f"OSF needs peft 0.21 or later, whose layers keep the weight beside its parts; {version('peft')} is here."
        )
    if has_mixtures(model) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("the model has adapters already; OSF goes on a model without any (not beside LoRA).")
    targets = linear_names(model, settings.target_modules, settings.blocks)
    for name in targets:
        weight = model.get_submodule(name).weight
        if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.ndim != 2:
            dtype = getattr(weight, "dtype", "?")
            raise ValueError(f"{name}: its weight is {dtype}; OSF needs one that is not quantised.")
        smaller, rank = min(weight.shape), settings.effective_rank
        kept = smaller // 2 if rank is None else int(smaller * rank) if isinstance(rank, float) else rank
        if not 0 < kept < smaller:
            raise ValueError(
                f"{name}: effective_rank={rank} keeps {kept} of {smaller} directions; expected at least one that is "
                "kept and one that is trained."
            )
    config = OSFConfig(effective_rank=settings.effective_rank, target_modules=targets)
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
    for _, layer in osf_layers(model):
        for name in _KEPT:
            setattr(layer, name, BufferDict(dict(getattr(layer, name).items()), persistent=True))
    return model


def osf_layers(model: nn.Module) -> Iterator[tuple[str, OSFLayer]]:
    """Yield the qualified name and the layer of every OSF layer of ``model``."""
    for name, module in model.named_modules():
        if isinstance(module, OSFLayer):
            yield name, module


def has_osf(model: nn.Module) -> bool:
    """Whether any layer of ``model`` is tuned by OSF."""
    return any(True for _ in osf_layers(model))


@torch.no_grad()
def osf_weight(layer: OSFLayer) -> Tensor:
    """Return the weight with what was trained, as ``merge_and_unload`` of peft makes it, ``(out, in)``."""
    weight = _weight(layer)
    return (weight + layer.get_delta_weight(_adapter(layer))).to(weight.dtype)


@torch.no_grad()
def merge_osf_(model: nn.Module) -> int:
    """Add what was trained to the base weights, and leave OSF layers that add nothing until :func:`restart_osf_`.

    Layers that were not trained since their decomposition stay as they are.

    Returns:
        The number of layers merged.

    Raises:
        ValueError: what was trained is not finite; no weight has been changed then.
    """
    changed = [(name, layer) for name, layer in osf_layers(model) if not _is_fresh(layer)]
    for name, layer in changed:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in _trained(layer).values()):
            raise ValueError(f"{name}: what OSF has trained is not finite; the training has diverged.")
    for _, layer in changed:
        _weight(layer).copy_(osf_weight(layer))
        layer._osf_S_low_init[_adapter(layer)].zero_()
        for name, parameter in _trained(layer).items():
            parameter.copy_(getattr(layer, f"_osf_{name}_init")[_adapter(layer)])
    return len(changed)


@torch.no_grad()
def restart_osf_(model: nn.Module) -> int:
    """Decompose the weights of all merged layers anew, as a fresh OSF adapter of peft does.

    The parameters keep their identity, so optimizers and hooks stay valid.

    Returns:
        The number of layers restarted.
    """
    count = 0
    for _, layer in osf_layers(model):
        key = _adapter(layer)
        if bool(layer._osf_S_low_init[key].any()):
            continue
        parts = decompose_weight_matrix(_weight(layer), top_k=layer.effective_rank[key])
        for name, parameter in _trained(layer).items():
            parameter.copy_(parts[name])
            getattr(layer, f"_osf_{name}_init")[key].copy_(parts[name])
        for name in ("U_high", "V_high"):
            if key in (kept := getattr(layer, f"_osf_{name}")):
                kept[key].copy_(parts[name])
        count += 1
    return count


def osf_tensors(model: nn.Module) -> list[Tensor]:
    """Return all tensors of the decompositions, trained and kept, in a fixed order."""
    found: list[Tensor] = []
    for _, layer in osf_layers(model):
        found += [parameter.data for parameter in _trained(layer).values()]
        found += [tensor for name in _KEPT for tensor in getattr(layer, name).values()]
    return found


def _weight(layer: OSFLayer) -> Tensor:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, Tensor)
    return weight.data


def _adapter(layer: OSFLayer) -> str:
    (name,) = layer.osf_svd_params
    return str(name)


def _trained(layer: OSFLayer) -> dict[str, nn.Parameter]:
    trained = layer.osf_svd_params[_adapter(layer)]
    assert isinstance(trained, nn.ParameterDict)
    return dict(trained.items())


def _is_fresh(layer: OSFLayer) -> bool:
    """Whether what is trained is what the decomposition gave."""
    key = _adapter(layer)
    return all(
        torch.equal(tensor, getattr(layer, f"_osf_{name}_init")[key]) for name, tensor in _trained(layer).items()
    )
