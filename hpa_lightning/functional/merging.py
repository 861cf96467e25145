"""Linear merging of two weights.

Arithmetic is float64, block of rows by block of rows, with one cast when the result is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional._checks import blocks, check_finite, check_float, check_number


@torch.no_grad()
def merge_linearly(weight: Tensor, reference: Tensor, share: float) -> Tensor:
    """Compute `(1 - share) * weight + share * reference`.

    Share 0 gives `weight`, share 1 gives `reference`, and equal entries stay as they are, all exactly.

    Args:
        weight: the task's weight, `(out_features, in_features)`, any floating dtype.
        reference: the safe weight, same shape, any floating dtype.
        share: share of the reference, in [0, 1].

    Returns:
        `(out_features, in_features)` in the dtype of `reference`.

    Raises:
        ValueError: wrong shapes, a share outside [0, 1], or non-finite values.

    Source: arXiv 2410.07571 (ICLR 2025), weight merging of a task-tuned and a safety-tuned model.

    Example:
        >>> import torch
        >>> merge_linearly(torch.tensor([[4.0, 1.0]]), torch.tensor([[0.0, 1.0]]), 0.25)
        tensor([[3., 1.]])
    """
    check_float("weight", weight, ("r", "c"))
    check_float("reference", reference, tuple(weight.shape), like=weight)
    check_number("share", share, 0.0, 1.0)
    check_finite("weight", weight)
    check_finite("reference", reference)
    merged = torch.empty_like(reference)
    for lines in blocks(*weight.shape):
        merged[lines] = torch.lerp(
            weight[lines].to(torch.float64), reference[lines].to(torch.float64), float(share)
        ).to(reference.dtype)
    return merged
