"""RegLoRA: later tasks leave alone the weight entries that earlier tasks changed most (SEFE)."""

from __future__ import annotations

from torch import Tensor, nn

from hpa_lightning.callbacks.baselines.penalty import AdapterPenalty
from hpa_lightning.functional.adapter_penalty import largest_update_entries, pack_mask, protected_update_penalty
from hpa_lightning.modules.adapters import LoraFactors


class RegLoRA(AdapterPenalty):
    """Adds ``weight * mean over layers of mean |(B A)[protected]|`` to the loss.

    After each task the ``percent`` of entries of largest ``|B A|`` in every matrix become protected.

    Decision: protected entries add up over the tasks (union); the source speaks of the key entries of previous tasks.
    Decision: ``B A`` without LoRA's scaling factor, as the source writes it. The choice of entries does not depend on
    it; the strength of the penalty does: another ``alpha / rank`` means another weight.
    Decision: layers without a protected entry count as 0 in the mean over layers.
    Answer style diversification, the other half of SEFE, changes the data and is not part of this callback.

    Hooks, Strategies: see :class:`AdapterPenalty`. State: the protected entries, one bit for each entry of the tuned
    matrices whatever the number of tasks (uint8 ``(out_features, ceil(in_features / 8))``), on the layer's device.
    Source: SEFE (Chen et al., ICML 2025, arXiv 2505.02486), RegLoRA.

    Args:
        percent: entries of each matrix that every task adds to the protected ones (source: 2).
        weight: factor of the penalty (source: 2500).
        blocks, target_modules: see :class:`LinearsCallback`.
    """

    def __init__(
        self,
        percent: float = 2.0,
        weight: float = 2500.0,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__(weight, blocks, target_modules)
        if not 0.0 < percent <= 100.0:
            raise ValueError(f"percent is {percent}; expected a share of each matrix's entries, in (0, 100] percent.")
        self.percent = percent

    def remember(self, factors: LoraFactors, earlier: Tensor | None) -> Tensor:
        protected = pack_mask(largest_update_entries(factors.lora_a, factors.lora_b, self.percent))
        return protected if earlier is None else earlier | protected

    def term(self, factors: LoraFactors, earlier: Tensor) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        value, gradient_a, gradient_b = protected_update_penalty(factors.lora_a, factors.lora_b, earlier)
        layers = len(self._adapters)
        return value / layers, [(factors.lora_a, gradient_a / layers), (factors.lora_b, gradient_b / layers)]
