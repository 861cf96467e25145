"""RegLoRA: later tasks leave alone the weight entries that earlier tasks changed most (SEFE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpa_lightning.callbacks.baselines.penalty import AdapterPenalty
from hpa_lightning.functional.adapter_penalty import largest_update_entries, pack_mask, protected_update_penalty
from hpa_lightning.modules.lora import LoraFactors


class RegLoRA(AdapterPenalty):
    """Adds ``weight * mean over layers of mean |(B A)[protected]|`` to the loss.

    After each task the ``percent`` of entries of largest ``|B A|`` in every matrix become protected.

    Decision: protected entries add up over the tasks (union); the source speaks of the key entries of previous tasks.
    The authors' code puts the tasks' lists behind one another, so that an entry that k tasks chose counts k times in
    the mean (``count_repeats=True``).
    Decision: ``B A`` without LoRA's scaling factor, as the source writes it. The choice of entries does not depend on
    it; the strength of the penalty does: another ``alpha / rank`` means another weight.
    Decision: layers without a protected entry count as 0 in the mean over layers.
    Answer style diversification, the other half of SEFE, changes the data and is not part of this callback.

    Hooks, Strategies: see :class:`AdapterPenalty`. State: the protected entries, one bit for each entry of the tuned
    matrices whatever the number of tasks (uint8 ``(out_features, ceil(in_features / 8))``), on the layer's device;
    with ``count_repeats`` one bit for each task, ``(tasks, out_features, ceil(in_features / 8))``.
    Source: SEFE (Chen et al., ICML 2025, arXiv 2505.02486), RegLoRA.

    Args:
        percent: entries of each matrix that every task adds to the protected ones (source: 2).
        weight: factor of the penalty (source: 2500).
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        count_repeats: count an entry once for each task that protects it.

    Raises:
        ValueError: a percentage outside (0, 100], or a weight that is negative or not finite.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import RegLoRA
        >>> callbacks = [SequentialTuning(), RegLoRA(percent=2.0)]               # of a Trainer, over a stream of tasks
    """

    def __init__(
        self,
        percent: float = 2.0,
        weight: float = 2500.0,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        count_repeats: bool = False,
    ) -> None:
        super().__init__(weight, blocks, target_modules)
        if not 0.0 < percent <= 100.0:
            raise ValueError(f"percent is {percent}; expected a share of each matrix's entries, in (0, 100] percent.")
        self.percent = percent
        self.count_repeats = count_repeats

    def remember(self, factors: LoraFactors, earlier: Tensor | None) -> Tensor:
        protected = pack_mask(largest_update_entries(factors.lora_a, factors.lora_b, self.percent))
        if self.count_repeats:
            return protected[None] if earlier is None else torch.cat([earlier, protected[None]])
        return protected if earlier is None else earlier | protected

    def term(self, factors: LoraFactors, earlier: Tensor | None) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        assert earlier is not None, "asked for from the second task on"
        value, gradient_a, gradient_b = protected_update_penalty(factors.lora_a, factors.lora_b, earlier)
        share = self.weight / len(self._adapters)
        return share * value, [(factors.lora_a, share * gradient_a), (factors.lora_b, share * gradient_b)]
