"""OrthogonalLoRA: every task's adapter is pushed out of the input subspaces of the earlier ones (O-LoRA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpa_lightning.callbacks.baselines.penalty import AdapterPenalty
from hpa_lightning.functional.adapter_penalty import orthogonality_penalty
from hpa_lightning.modules.adapters import LoraFactors


class OrthogonalLoRA(AdapterPenalty):
    """Adds ``weight * sum over layers and entries of |A_new A_prev^T|`` to the loss, over all earlier tasks: O-LoRA.

    A's rows span the inputs an adapter reads, so earlier adapters' directions are left alone. In the source the earlier
    adapters stay frozen beside the new one; here they are in the base weights, which is the same function, and only
    their A factors are kept. Neither B nor the scaling enters.

    Hooks, Strategies: see :class:`AdapterPenalty`. State: the earlier A factors, ``(tasks * rank, in_features)`` for
    each layer in the adapter's dtype, on the layer's device.
    Source: O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152).

    Args:
        weight: lambda (source: 0.5).
        blocks, target_modules: see :class:`LinearsCallback`.
    """

    def __init__(self, weight: float = 0.5, blocks: str | None = None, target_modules: list[str] | None = None) -> None:
        super().__init__(weight, blocks, target_modules)

    def remember(self, factors: LoraFactors, earlier: Tensor | None) -> Tensor:
        trained = factors.lora_a.detach().clone()
        return trained if earlier is None else torch.cat([earlier, trained])

    def term(self, factors: LoraFactors, earlier: Tensor) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        value, gradient = orthogonality_penalty(factors.lora_a, earlier)
        return value, [(factors.lora_a, gradient)]
