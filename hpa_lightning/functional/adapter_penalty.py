"""Penalties on LoRA factors, with their gradients in closed form: O-LoRA's and RegLoRA's.

`A` is `(q, c)`, `B` is `(r, q)`. Arithmetic is float32 (float64 for float64 inputs), out of autocast's reach; a lower
precision of float32 products that the user has set holds here too, as for the rest of the loss. What runs at every
optimizer step does not wait for the device, and nothing adds with atomics, so that equal processes compute equal bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    blocks,
    check_finite,
    check_float,
    check_number,
    describe,
    is_dense,
    result_dtype,
)


@torch.no_grad()
def orthogonality_penalty(lora_a: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `sum_ij |A E^T|_ij` and its gradient `sign(A E^T) E` with respect to A.

    Args:
        lora_a: A, `(q, c)`, any floating dtype.
        earlier: E, the rows of all earlier A's, `(n, c)`, any floating dtype.

    Returns:
        `(value, gradient)`: 0-dim and `(q, c)`, float32 (float64 if an argument is float64). The subgradient at 0 is 0.

    Raises:
        ValueError: wrong shapes or devices.

    Source: O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152), the orthogonality loss.

    Example:
        >>> import torch
        >>> value, gradient = orthogonality_penalty(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
        >>> value.item(), gradient.tolist()
        (5.0, [[3.0, 1.0]])
    """
    check_float("lora_a", lora_a, ("q", "c"))
    check_float("earlier", earlier, ("n", lora_a.shape[1]), like=lora_a)
    dtype = result_dtype(lora_a, earlier)
    rows = earlier.to(dtype)
    with torch.autocast(lora_a.device.type, enabled=False):
        overlap = lora_a.to(dtype) @ rows.T
        return overlap.abs().sum(), overlap.sign() @ rows


@torch.no_grad()
def norm_penalty(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `||X||_F` (not squared) and its gradient `X / ||X||_F`.

    Args:
        factor: X, A or B of an adapter, any floating dtype.

    Returns:
        `(value, gradient)`: 0-dim and of the shape of X, float32 (float64 for float64). The subgradient at 0 is 0.

    Source: the second penalty in O-LoRA's public code.

    Example:
        >>> import torch
        >>> value, gradient = norm_penalty(torch.tensor([[3.0, 4.0]]))
        >>> value.item(), [round(x, 2) for x in gradient[0].tolist()]
        (5.0, [0.6, 0.8])
    """
    check_float("factor", factor, ("q", "c"))
    wide = factor.to(result_dtype(factor))
    norm = wide.square().sum().sqrt()
    return norm, torch.where(norm > 0, wide / norm, 0.0)


@torch.no_grad()
def largest_update_entries(lora_a: Tensor, lora_b: Tensor, percent: float) -> Tensor:
    """Find the entries of `B A` of largest magnitude.

    Decision: `floor(percent * r * c / 100 + 0.5)` entries, ties to the lower row-major index; entries that are exactly
    0 (an adapter that was never trained) are not taken, so that there may be fewer.

    Args:
        lora_a: A, `(q, c)`, any floating dtype.
        lora_b: B, `(r, q)`, any floating dtype.
        percent: share of the `r * c` entries, 0 to 100.

    Returns:
        Boolean `(r, c)`.

    Raises:
        ValueError: wrong shapes, non-finite values, percentage outside 0 to 100.

    Source: RegLoRA in SEFE (ICML 2025, arXiv 2505.02486).

    Example:
        >>> import torch
        >>> largest_update_entries(torch.tensor([[1.0, -3.0]]), torch.tensor([[1.0], [2.0]]), percent=50).tolist()
        [[False, True], [False, True]]
    """
    _check_factors(lora_a, lora_b)
    check_number("percent", percent, 0.0, 100.0)
    dtype = result_dtype(lora_a, lora_b)
    with torch.autocast(lora_a.device.type, enabled=False):
        size = (lora_b.to(dtype) @ lora_a.to(dtype)).abs().flatten()
    check_finite("lora_b @ lora_a", size)
    shape = (lora_b.shape[0], lora_a.shape[1])
    count = min(size.numel(), math.floor(percent * size.numel() / 100 + 0.5))
    if count == 0:
        return torch.zeros(shape, dtype=torch.bool, device=size.device)
    threshold = torch.topk(size, count, sorted=False).values.min()
    chosen = size > threshold
    ties = (size == threshold) & (threshold > 0)
    chosen |= ties & (ties.cumsum(0) <= count - chosen.sum())
    return chosen.view(shape)


@torch.no_grad()
def pack_mask(mask: Tensor) -> Tensor:
    """Store a boolean `(r, c)` mask as bits: uint8 `(r, ceil(c / 8))`, bit k of byte j is column `8 j + k`.

    The union of two masks is the `|` of their packed forms.

    Raises:
        ValueError: not a boolean matrix.

    Example:
        >>> import torch
        >>> pack_mask(torch.tensor([[True, False, True]])).tolist()
        [[5]]
    """
    if not is_dense(mask) or mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(f"mask: expected a boolean tensor of shape (r, c), got {describe(mask)}.")
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8)).unflatten(1, (-1, 8))
    found: Tensor = padded.bitwise_left_shift(_bits(mask)).sum(2, dtype=torch.uint8)
    return found


@torch.no_grad()
def unpack_mask(packed: Tensor, columns: int) -> Tensor:
    """Undo :func:`pack_mask`: uint8 0 or 1, `(r, columns)`.

    Raises:
        ValueError: not uint8, or not as many bytes in a row as `columns` need.

    Example:
        >>> import torch
        >>> unpack_mask(torch.tensor([[5]], dtype=torch.uint8), 3).tolist()
        [[1, 0, 1]]
    """
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != (columns + 7) // 8:
        raise ValueError(
            f"packed: expected a uint8 tensor of shape (r, {(columns + 7) // 8}) for {columns} columns, "
            f"got {describe(packed)}."
        )
    return packed.unsqueeze(2).bitwise_right_shift(_bits(packed)).bitwise_and_(1).flatten(1)[:, :columns]


@torch.no_grad()
def protected_update_penalty(lora_a: Tensor, lora_b: Tensor, protected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean of `|B A|` over the protected entries and its gradients with respect to A and B.

    With `S = sign(B A)` on the protected entries, 0 elsewhere, divided by their number: the gradients are `B^T S` and
    `S A^T`. One block of rows of `B A` exists at a time, so memory does not grow with the layer, and time does not
    grow with the number of protected entries: from about 5 % of them on this is faster than gathering each entry's row
    of B and column of A, whose gradients would also be summed with atomics on CUDA.

    Args:
        lora_a: A, `(q, c)`, any floating dtype.
        lora_b: B, `(r, q)`, any floating dtype.
        protected: mask over `(r, c)` as :func:`pack_mask` stores it, uint8 `(r, ceil(c / 8))`; or several,
            `(n, r, ceil(c / 8))`, of which each counts: an entry in k of them has k times the weight in the mean.

    Returns:
        `(value, gradient_a, gradient_b)`: 0-dim, `(q, c)`, `(r, q)`; float32 (float64 if an argument is float64). All
        are 0 where nothing is protected. The subgradient at 0 is 0.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Source: RegLoRA in SEFE (ICML 2025, arXiv 2505.02486), the regularisation loss of one matrix.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[1.0, -3.0]]), torch.tensor([[1.0], [2.0]])
        >>> protected = pack_mask(torch.tensor([[True, False], [False, True]]))
        >>> [tensor.tolist() for tensor in protected_update_penalty(a, b, protected)]
        [3.5, [[0.5, -1.0]], [[0.5], [1.5]]]
    """
    _check_factors(lora_a, lora_b)
    rows, columns = lora_b.shape[0], lora_a.shape[1]
    masks = protected if protected.dim() == 3 else protected[None]
    if masks.dim() != 3 or masks.shape[1] != rows or protected.device != lora_b.device:
        raise ValueError(f"protected: expected {rows} rows on {lora_b.device}, got {describe(protected)}.")
    dtype = result_dtype(lora_a, lora_b)
    a, b = lora_a.to(dtype), lora_b.to(dtype)
    total, count = a.new_zeros(()), a.new_zeros(())
    gradient_a, gradient_b = torch.zeros_like(a), torch.empty_like(b)
    with torch.autocast(a.device.type, enabled=False):
        for block in blocks(rows, columns):
            update = b[block] @ a
            repeats = unpack_mask(masks[0, block], columns)
            for mask in masks[1:]:
                repeats = repeats + unpack_mask(mask[block], columns)
            signs = update.sign().mul_(repeats)
            total += (update * signs).sum()
            count += repeats.sum()
            gradient_b[block] = signs @ a.T
            gradient_a.addmm_(b[block].T, signs)
    count.clamp_(min=1.0)
    return total / count, gradient_a / count, gradient_b / count


def _bits(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _check_factors(lora_a: Tensor, lora_b: Tensor) -> None:
    check_float("lora_a", lora_a, ("q", "c"))
    check_float("lora_b", lora_b, ("r", lora_a.shape[0]), like=lora_a)
