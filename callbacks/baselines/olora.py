"""OrthogonalLoRA: every task's adapter is pushed out of the input subspaces of the earlier ones (O-LoRA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpa_lightning.callbacks.baselines.penalty import AdapterPenalty
from hpa_lightning.functional.adapter_penalty import norm_penalty, orthogonality_penalty
from hpa_lightning.modules.lora import LoraFactors


class OrthogonalLoRA(AdapterPenalty):
    """Adds ``weight * sum over layers and entries of |A_new A_prev^T|`` to the loss, over all earlier tasks: O-LoRA.

    With ``norm_weight`` also ``norm_weight * sum over layers of (||A_new||_F + ||B_new||_F)``, the second penalty of
    the authors' code; it acts from the first task on.

    A's rows span the inputs an adapter reads, so earlier adapters' directions are left alone. In the source the earlier
    adapters stay frozen beside the new one; here they are in the base weights, which is the same function, and only
    their A factors are kept. Neither B nor the scaling enters.

    Hooks, Strategies: see :class:`AdapterPenalty`. State: the earlier A factors, ``(tasks * rank, in_features)`` for
    each layer in the adapter's dtype, on the layer's device.
    Source: O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152).

    Args:
        weight: lambda (source: 0.5).
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        norm_weight: lambda_2 of the authors' code (there 0 for the first tasks, then 0, 0.1 or 0.3 by task).

    Raises:
        ValueError: a weight that is negative or not finite.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import OrthogonalLoRA
        >>> callbacks = [SequentialTuning(), OrthogonalLoRA(weight=0.5)]         # of a Trainer, over a stream of tasks
    """

    def __init__(
        self,
        weight: float = 0.5,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        norm_weight: float = 0.0,
    ) -> None:
        super().__init__(weight, blocks, target_modules)
        if not 0.0 <= norm_weight < float("inf"):
            raise ValueError(f"{type(self).__name__}: norm_weight is {norm_weight}; expected a finite number >= 0.")
        self.norm_weight = norm_weight

    @property
    def penalizes_first_task(self) -> bool:
        return self.norm_weight > 0.0

    def remember(self, factors: LoraFactors, earlier: Tensor | None) -> Tensor:
        trained = factors.lora_a.detach().clone()
        return trained if earlier is None else torch.cat([earlier, trained])

    def term(self, factors: LoraFactors, earlier: Tensor | None) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        total = torch.zeros((), device=factors.lora_a.device)
        gradients: list[tuple[nn.Parameter, Tensor]] = []
        if earlier is not None:
            value, gradient = orthogonality_penalty(factors.lora_a, earlier)
            total = self.weight * value
            gradients.append((factors.lora_a, self.weight * gradient))
        if self.norm_weight:
            for factor in (factors.lora_a, factors.lora_b):
                value, gradient = norm_penalty(factor)
                total = total + self.norm_weight * value
                gradients.append((factor, self.norm_weight * gradient))
        return total, gradients
