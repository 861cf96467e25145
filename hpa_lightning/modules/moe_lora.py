"""A mixture of LoRA experts on one linear layer (MoELoRA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixtureOfLora(nn.Module):
    """``y = W x + scaling * sum_e p_e(x) B_e A_e x``, ``p(x) = softmax(router x)`` over all experts for each token.

    The experts' factors are stacked, so that a mixture costs what one adapter of the whole rank costs, and the router:
    rows ``e q/N`` to ``(e+1) q/N`` of ``lora_a`` are ``A_e``, the same columns of ``lora_b`` are ``B_e``. The update
    depends on the token; there is no ``W + g B A`` to merge.

    Adapter and router have the base weight's dtype and device. As in peft, the input is cast to the adapter's dtype and
    the output to that of the base layer's output; the softmax is taken in fp32.

    Source: MoELoRA in CoIN (Chen et al., NeurIPS 2024, arXiv 2403.08350).
    Decision: ``scaling`` is made from the whole rank q, not from that of one expert.
    Decision: the router starts Kaiming-uniform as a plain linear layer does, so that the experts differ in what they
    see from the first step on; A likewise, B = 0, so the function does not change at the start.
    Decision: dropout acts on the adapter's input alone; the router sees the input as it is.

    Args:
        base_layer: the layer to tune; its parameters are frozen.
        rank: q, of all experts together.
        experts: N; has to divide ``rank``.
        scaling: factor of the update.
        dropout: dropout probability on the adapter's input.

    Raises:
        ValueError: ``experts`` does not divide ``rank``, or the base is no plain linear layer.
    """

    def __init__(self, base_layer: nn.Linear, rank: int, experts: int, scaling: float, dropout: float = 0.0) -> None:
        super().__init__()
        check_experts(rank, experts)
        weight = getattr(base_layer, "weight", None)
        if not isinstance(base_layer, nn.Linear) or weight is None or not weight.dtype.is_floating_point:
            raise ValueError(
                f"the base layer is a {type(base_layer).__name__}"
                + (f" with a {weight.dtype} weight" if isinstance(weight, Tensor) else "")
                + "; expected a plain, not quantised nn.Linear."
            )
        self.base_layer = base_layer.requires_grad_(False)
        self.experts = experts
        self.scaling = scaling
        self.enabled = True  # off: the base layer alone
        rows, columns = weight.shape
        self.lora_a = nn.Parameter(weight.new_empty(rank, columns))
        self.lora_b = nn.Parameter(weight.new_empty(rows, rank))
        self.router = nn.Parameter(weight.new_empty(experts, columns))
        self.dropout = nn.Dropout(dropout) if dropout > 0.0 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: A and router Kaiming-uniform, B = 0."""
        for parameter in (self.lora_a, self.router):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b)

    @property
    def weight(self) -> Tensor:
        """The base weight, ``(out_features, in_features)``: model code asks linear layers for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.base_layer.out_features

    def probabilities(self, x: Tensor) -> Tensor:
        """Return ``p(x)``: ``(..., in_features)`` to ``(..., experts)``, fp32 (fp64 for an fp64 router)."""
        logits = F.linear(x.to(self.router.dtype), self.router)
        return torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        result = self.base_layer(x)
        if not self.enabled:
            found: Tensor = result
            return found
        x = x.to(self.lora_a.dtype)
        hidden = F.linear(self.dropout(x), self.lora_a).unflatten(-1, (self.experts, -1))
        hidden = (hidden * self.probabilities(x).unsqueeze(-1).to(hidden.dtype)).flatten(-2)
        mixed: Tensor = (result + F.linear(hidden, self.lora_b) * self.scaling).to(result.dtype)
        return mixed

    def extra_repr(self) -> str:
        return f"experts={self.experts}, rank={self.lora_a.shape[0]}, scaling={self.scaling:g}"


def check_experts(rank: int, experts: int) -> None:
    """Require that ``rank`` can be split among ``experts``.

    Raises:
        ValueError: fewer than one expert, or a rank that they do not divide.
    """
    if experts < 1 or rank % experts:
        raise ValueError(
            f"{experts} LoRA experts share a rank of {rank}; expected at least one, and a rank that they divide."
        )


def has_mixtures(model: nn.Module) -> bool:
    """Whether any layer of ``model`` is a mixture of LoRA experts."""
    return any(isinstance(module, MixtureOfLora) for module in model.modules())
