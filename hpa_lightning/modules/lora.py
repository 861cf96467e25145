"""Low-rank adapters (LoRA) through peft: adding, reading, merging and restarting them.

Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models" (ICLR 2022): ``W = W_prev + scaling * B @ A`` with ``A (rank, in_features)`` and
``B (out_features, rank)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer
from peft.tuners.osf.layer import OSFLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hpa_lightning import functional as F
from hpa_lightning.modules.fsdp import assign_, full_tensor, local_tensor
from hpa_lightning.modules.linear_names import linear_names
from hpa_lightning.modules.moe_lora import MixtureOfLora, check_experts, has_mixtures

PLAIN_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Of weights that can be written into; 8-bit floats are not, whose scales stand elsewhere."""


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the linear layers of the language model's decoder blocks.

    Args:
        rank: number of rows of A; of all experts together where there are several.
        alpha: the update is scaled by ``alpha / rank`` (``alpha / sqrt(rank)`` with ``rank_stabilized``).
        dropout: dropout probability on the adapter's input.
        target_modules: last names of the linear layers, for example ``["q_proj", "v_proj"]``; ``None`` takes every
            linear layer of the decoder blocks.
        rank_stabilized: scale by ``alpha / sqrt(rank)`` (rsLoRA).
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        experts: 1 is plain LoRA. More make every adapter a mixture of that many experts of rank ``rank / experts``,
            weighed for each token by a router (MoELoRA, see :class:`MixtureOfLora`). A mixture cannot be merged or
            exported, and methods that need ``W_prev + scaling * B @ A`` refuse it.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None
    rank_stabilized: bool = False
    blocks: str | None = None
    experts: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank is {self.rank}; expected at least 1.")
        check_experts(self.rank, self.experts)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA dropout is {self.dropout}; expected a probability in [0, 1).")

    @property
    def scaling(self) -> float:
        """The factor of the update, from the whole rank."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclass(frozen=True)
class LoraFactors:
    """The tensors of one LoRA layer: ``W = weight + scaling * lora_b @ lora_a``.

    Shapes: ``weight (r, c)``, ``lora_a (q, c)``, ``lora_b (r, q)``.
    """

    weight: nn.Parameter
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float


def add_lora(model: nn.Module, settings: LoraSettings) -> nn.Module:
    """Inject LoRA layers in place, freeze every other parameter and return ``model``.

    Raises:
        ValueError: no linear layer of the decoder blocks matches ``settings.target_modules``, or mixtures of LoRA
            experts meet other adapters.
    """
    if has_mixtures(model) or (settings.experts > 1 and any(isinstance(m, BaseTunerLayer) for m in model.modules())):
        raise ValueError("the model has adapters already; mixtures of LoRA experts go on a model without any.")
    targets = linear_names(model, settings.target_modules, settings.blocks)
    if settings.experts > 1:
        model.requires_grad_(False)
        for name in targets:
            parent, _, child = name.rpartition(".")
            base: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
            mixture = MixtureOfLora(base, settings.rank, settings.experts, settings.scaling, settings.dropout)
            setattr(model.get_submodule(parent), child, mixture.train(base.training))
        return model
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        use_rslora=settings.rank_stabilized,
        target_modules=targets,
    )
    model.requires_grad_(False)
    return inject_adapter_in_model(config, model)


def lora_factors(module: nn.Module, name: str = "") -> LoraFactors | None:
    """Return the LoRA tensors of ``module``, or ``None`` if it is no LoRA layer.

    Raises:
        ValueError: an adapter whose update is not exactly ``scaling * B @ A`` on a plain linear layer: a mixture of
            LoRA experts, another kind of adapter, several active adapters, DoRA and other variants, an adapter bias, a
            merged adapter, an embedding, or a base layer whose weight is not a floating-point ``(out_features,
            in_features)`` matrix.
    """
    if isinstance(module, MixtureOfLora):
        raise ValueError(
            f"{name or type(module).__name__}: a mixture of {module.experts} LoRA experts, whose update depends on the "
            "token; expected plain LoRA, W_prev + scaling * B @ A. A mixture cannot be merged, exported as a plain "
            "model or treated by methods on the weights: use LoraSettings(experts=1) for them, or keep it in Lightning "
            "checkpoints."
        )
    if not isinstance(module, BaseTunerLayer):
        return None
    label = f"{name or type(module).__name__}"
    if isinstance(module, OSFLayer):
        raise ValueError(
            f"{label}: an OSF layer of peft, which trains the weight's own singular directions; expected LoRA or plain "
            "weights. Methods on the weights do not work beside OSF: leave `osf` out, and set `lora` for them."
        )
    if not isinstance(module, LoraLayer) or isinstance(module, AdaLoraLayer):
        kind = type(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
        raise ValueError(f"{label}: the adapter is a {type(module).__name__} of peft's {kind}; expected a LoRA layer.")
    if isinstance(module, LoraEmbedding):
        raise ValueError(
            f"{label}: LoRA on an embedding; expected it on linear layers alone. Leave it out of target_modules."
        )
    active = list(module.active_adapters)
    if len(active) != 1 or set(module.lora_A) != set(active):
        raise ValueError(
            f"{label}: adapters {sorted(module.lora_A)} with {active} active; expected exactly one adapter, and that "
            "one active. Delete or merge the others first."
        )
    key = active[0]
    variant, biased = getattr(module, "lora_variant", {}).get(key), getattr(module, "lora_bias", {}).get(key)
    if variant is not None or biased:
        found = "an adapter bias (lora_bias)" if variant is None else f"the LoRA variant {type(variant).__name__}"
        raise ValueError(f"{label}: {found}; expected plain LoRA, whose update is scaling * B @ A.")
    if module.merged:
        raise ValueError(f"{label}: the adapter is merged into the base weight; call unmerge() first.")
    base = module.get_base_layer()
    weight = getattr(base, "weight", None)
    if not isinstance(base, nn.Linear) or weight is None or weight.dtype not in PLAIN_DTYPES or weight.ndim != 2:
        raise ValueError(
            f"{label}: the base layer is a {type(base).__name__}"
            + (f" with a {weight.dtype} weight" if weight is not None else "")
            + "; expected a plain, not quantised nn.Linear, since merging and fusing write into it and rounding the "
            "result to a few bits again would lose what they kept. Tune a base in bf16; or tune the adapter alone "
            "(QLoRA), save it, and fuse it into the unquantised base with `hpa-lightning fuse`."
        )
    return LoraFactors(
        weight=weight,
        lora_a=module.lora_A[key].weight,
        lora_b=module.lora_B[key].weight,
        scaling=float(module.scaling[key]),
    )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraFactors]]:
    """Yield the qualified name and the tensors of every LoRA layer of ``model``."""
    for name, module in model.named_modules():
        factors = lora_factors(module, name)
        if factors is not None:
            yield name, factors


def check_own_bases(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse adapters on a base weight that is another module's, too: an update that is merged into it would be both's.

    Args:
        model: whose modules may hold the weights, all of it.
        weights: name of a LoRA layer -> its base weight.

    Raises:
        ValueError: a base weight is tied to another module (``tie_word_embeddings``), or stands in several layers.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name.removesuffix(".base_layer"))
    for name, weight in weights.items():
        others = [owner for owner in owners.get(id(weight), []) if owner != name]
        if others:
            raise ValueError(
                f"{name}: the adapter's base weight is that of {', '.join(others[:3])}, too; expected one of its own, "
                "since merging or fusing the adapter would change both. Leave the layer out of target_modules, or load "
                "the model with untied weights (tie_word_embeddings=False)."
            )


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[int]:
    """Let the model compute what its base weights alone do; yields how many adapters are off.

    What is trained stays as it is. Decision: the layers' own switch is set and not peft's ``enable_adapters``, which
    also sets ``requires_grad`` of every adapter, under the feet of DDP and FSDP2 and of what a user has frozen.

    Raises:
        ValueError: an adapter is merged into its base weight, which is not the base then.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfLora)]
    if any(layer.merged for layer in layers):
        raise ValueError("an adapter is merged into its base weight; call unmerge() first.")
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        for mixture in mixtures:
            mixture.enabled = False
        yield len(layers) + len(mixtures)
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was
        for mixture in mixtures:
            mixture.enabled = True


def outside_adapters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that adapters are not made of, with their names as they are without adapters."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, MixtureOfLora):
            inside |= {id(parameter) for parameter in module.parameters(recurse=False)}
        elif isinstance(module, BaseTunerLayer):
            base = {id(parameter) for parameter in module.get_base_layer().parameters()}
            inside |= {id(parameter) for parameter in module.parameters()} - base
    found = [(name, p) for name, p in model.named_parameters() if id(p) not in inside]
    return [(name.replace(".base_layer.", "."), parameter) for name, parameter in found]


def adapters_are_empty(model: nn.Module) -> bool:
    """Whether every adapter's B is 0, so that the model is its base."""
    factors: list[Any] = [module.lora_b for module in model.modules() if isinstance(module, MixtureOfLora)]
    for module in model.modules():
        if isinstance(module, LoraLayer):
            factors += [module.lora_B[name].weight for name in module.active_adapters if name in module.lora_B]
    return not any(bool(local_tensor(factor).any()) for factor in factors)


@torch.no_grad()
def merge_lora_(model: nn.Module) -> int:
    """Add every adapter's update to its base weight, in fp32, and empty the adapters (B = 0).

    The function that the model computes stays the same up to one rounding of the base weight.

    Returns:
        The number of layers merged.

    Raises:
        ValueError: an update is not finite, or a base weight is another module's, too; no weight has been changed then.
    """
    layers = list(lora_layers(model))
    check_own_bases(model, {name: factors.weight for name, factors in layers})
    for name, factors in layers:
        if not all(bool(torch.isfinite(full_tensor(factor)).all()) for factor in (factors.lora_a, factors.lora_b)):
            raise ValueError(f"{name}: the adapter holds values that are not finite; the training has diverged.")
    for _, factors in layers:
        weight, b = local_tensor(factors.weight), local_tensor(factors.lora_b)
        weight.copy_(weight.float() + F.lora_update(full_tensor(factors.lora_a), b, factors.scaling))
        b.zero_()
    return len(layers)


@torch.no_grad()
def restart_lora_(model: nn.Module, generator: torch.Generator) -> int:
    """Give every adapter a fresh start: A Kaiming-uniform as in peft, B = 0.

    Args:
        model: a model with LoRA layers; the parameters keep their identity, so optimizers and hooks stay valid.
        generator: a CPU generator. The same seed gives the same adapters on every device and rank.

    Returns:
        The number of adapters restarted.
    """
    count = 0
    for _, factors in lora_layers(model):
        fresh = torch.empty(factors.lora_a.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        assign_(factors.lora_a, fresh)
        local_tensor(factors.lora_b).zero_()
        count += 1
    return count
