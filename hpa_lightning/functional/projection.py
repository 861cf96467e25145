"""Projections for use inside the optimizer step: retained columns stay, updates stay orthogonal.

Everything here is in place, reads shapes and dtypes only and causes no host synchronisation on CUDA. Inner
products are float64: float32 ones would miss the bound of 1e-6 on large weights, and a float32 matrix product
may run as TF32 or under autocast.

Source: HPA (arXiv 2511.20158), step 3, applied to every step. Decision: the projection acts on the weights
after the optimizer's step, not on the gradients, since momentum, adaptive scaling and decoupled weight decay
all leave the subspace in which a gradient was put.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional._checks import (
    blocks,
    check_float,
    check_mask,
    check_same_dtype,
    describe,
    result_dtype,
)
from hpa_lightning.functional.rounding import RoundingSlots, rounding_slots, settle_rounding_, slots_by_size

# |<D, W_prev>| / (||D|| ||W_prev||) that `project_update_` lets stand; the promise is 1e-6.
_COSINE_BOUND = 0.9e-6
# A projection that leaves less than this share of a float64 norm has left rounding dust.
_DUST = 1e-12
# The same for a product B A, of an adapter stored in float32, against ||B|| ||A||.
_PRODUCT_DUST = 1e-6
# Rounding errors of that many float32 entries average out to well below the bound.
_SELF_AVERAGING = 4096


@torch.no_grad()
def project_update_(
    weight: Tensor,
    weight_prev: Tensor,
    retained: Tensor | None = None,
    slots: RoundingSlots | None = None,
) -> Tensor:
    """Keep the retained columns and make the update orthogonal to the weight before the task, in place.

    Retained columns are copied back from `weight_prev` bit for bit. With `P` = `weight_prev` on the other
    columns (0 on the retained ones), the update `D = weight - weight_prev` becomes
    `D - (<D, P> / ||P||^2) P`.
    Of the *stored* weight, in whatever dtype, `|<D, W_prev>| <= 1e-6 ||D|| ||W_prev||` holds: the leftover
    of rounding is moved to a few free entries (see `hpa_lightning.functional.rounding`). `D = 0` stays 0, and
    `P = 0` leaves the free columns as they are.

    Decision: where the grid of the dtype holds no such update near `D` (a handful of entries, or an update
    of a few ulp), the weight goes back to `weight_prev`: such an update is indistinguishable from rounding.

    Args:
        weight: `(out_features, in_features)`, any floating dtype; changed in place.
        weight_prev: weight before the task, same shape, dtype and device.
        retained: boolean `(in_features,)`, True keeps the old column; None: no column is kept.
        slots: `rounding_slots(weight_prev, retained)`, made once per task; None makes them on every call.

    Returns:
        The share `<D, P> / ||P||^2` of `P` that was removed, 0-dim, on the weight's device.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Example:
        >>> import torch
        >>> old = torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0]])
        >>> new = old + torch.tensor([[5.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> project_update_(new, old, torch.tensor([True, False, False]))
        tensor(0.1538)
        >>> new[:, 0]
        tensor([1., 2.])
        >>> abs(((new - old) * old).sum().item()) < 1e-6
        True
    """
    _check_pair(weight, weight_prev)
    if retained is not None:
        check_mask("retained", retained, weight.shape[1], weight)
    if slots is None:
        slots = rounding_slots(weight_prev, retained)
    r, c = weight.shape
    zero = torch.zeros((), dtype=torch.float64, device=weight.device)

    dot, free_square, full_square = zero, zero, zero
    for lines in blocks(r, c):
        old = weight_prev[lines].to(torch.float64)
        free = old if retained is None else old.masked_fill(retained, 0.0)
        dot = dot + _dot(weight[lines].to(torch.float64) - old, free)
        free_square = free_square + _dot(free, free)
        full_square = full_square + _dot(old, old)
    share = torch.where(free_square > 0, dot / free_square, 0.0)

    residual, norm_square = zero, zero
    for lines in blocks(r, c):
        old = weight_prev[lines].to(torch.float64)
        new = (weight[lines].to(torch.float64) - share * old).to(weight.dtype)
        if retained is not None:
            new = torch.where(retained, weight_prev[lines], new)
        weight[lines] = new
        delta = new.to(torch.float64) - old
        residual = residual + _dot(delta, old)
        norm_square = norm_square + _dot(delta, delta)

    # Comparisons are written so that NaN counts as kept: a diverged run must stay visible.
    anchor = weight_prev[slots.rows, slots.columns].to(torch.float64)
    broken = residual.abs() > _COSINE_BOUND * (norm_square * full_square).sqrt()
    leftover = torch.where(broken, residual, 0.0)
    leftover, norm_square = settle_rounding_(weight, slots, anchor, leftover, norm_square)
    lost = leftover.abs() > _COSINE_BOUND * (norm_square * full_square).sqrt()
    for lines in blocks(r, c):
        weight[lines] = torch.where(lost, weight_prev[lines], weight[lines])
    return share.to(result_dtype(weight))


@torch.no_grad()
def project_lora_(lora_b: Tensor, lora_a: Tensor, weight_prev: Tensor) -> Tensor:
    """Make a LoRA update orthogonal to the frozen base weight, in place on `B`.

    `<B A, W_prev> = <B, G>` with `G = W_prev A^T`, so that `B <- B - (<B, G> / ||G||_F^2) G` gives
    `<B A, W_prev> = 0` without leaving the adapter: neither `B A` nor a snapshot is needed. `G = 0` leaves
    `B` as it is. Columns kept by `A[:, j] = 0` stay kept. Where only `B A = 0` is orthogonal (a weight of one
    entry), `B` becomes 0.

    For a stored float32 `B`, `|<B A, W_prev>| <= 1e-6 ||B A|| ||W_prev||`. A half-precision (or small) `B`
    has its leftover of rounding moved to a few of its entries (see `hpa_lightning.functional.rounding`). That
    reaches the same bound in half precision from a few hundred entries of `B` on; below, the dtype may hold no
    such `B`.

    Args:
        lora_b: `B`, `(out_features, q)`, any floating dtype; changed in place.
        lora_a: `A`, `(q, in_features)`, any floating dtype.
        weight_prev: frozen base weight, `(out_features, in_features)`, any floating dtype.

    Returns:
        The share `<B, G> / ||G||_F^2` of `G` that was removed, 0-dim, on the weight's device.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Example:
        >>> import torch
        >>> base, a = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0]])
        >>> b = torch.tensor([[1.0], [0.0]])
        >>> _ = project_lora_(b, a, base)
        >>> abs((b @ a * base).sum().item()) < 1e-6
        True
    """
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("lora_a", lora_a, ("q", weight_prev.shape[1]), like=weight_prev)
    check_float("lora_b", lora_b, (weight_prev.shape[0], lora_a.shape[0]), like=weight_prev)
    direction = adapter_direction(weight_prev, lora_a)
    square = _dot(direction, direction)
    exact = lora_b.to(torch.float64)
    before = _dot(exact, exact)
    share = torch.where(square > 0, _dot(exact, direction) / square, 0.0)
    exact = exact - share * direction
    # Again: where B is nearly parallel to G the first difference has lost its leading digits.
    exact = exact - torch.where(square > 0, _dot(exact, direction) / square, 0.0) * direction
    exact = exact.masked_fill(_dot(exact, exact) <= _DUST**2 * before, 0.0)
    stored = exact.to(lora_b.dtype).to(torch.float64)
    wide_a = lora_a.to(torch.float64)
    size_a = _dot(wide_a, wide_a)
    product = ((stored.T @ stored) * (wide_a @ wide_a.T)).sum().clamp_min(0.0)
    residual = _dot(stored, direction)
    # ||W_prev|| >= ||G|| / ||A|| saves another pass over the weight.
    broken = residual.square() * size_a > _COSINE_BOUND**2 * product * square
    # With one row or one live column, say, orthogonal may mean B A = 0: rounding must not leave the opposite.
    dust = product <= _PRODUCT_DUST**2 * _dot(stored, stored) * size_a
    stored = stored.masked_fill(broken & dust, 0.0)
    lora_b.copy_(stored)
    if lora_b.dtype in (torch.float16, torch.bfloat16) or lora_b.numel() < _SELF_AVERAGING:
        # An ulp of B moves the inner product in proportion to |B G|, here not to G^2.
        slots = slots_by_size(direction, (stored * direction).abs().sqrt())
        leftover = torch.where(broken & ~dust, residual, 0.0)
        settle_rounding_(lora_b, slots, None, leftover, _dot(stored, stored))
    return share.to(result_dtype(lora_b, lora_a, weight_prev))


@torch.no_grad()
def restore_columns_(weight: Tensor, weight_prev: Tensor, retained: Tensor) -> Tensor:
    """Copy the retained columns back from `weight_prev`, bit for bit, in place.

    Args:
        weight: `(out_features, in_features)`; changed in place and returned.
        weight_prev: weight before the task, same shape, dtype and device.
        retained: boolean `(in_features,)`, True keeps the old column.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Example:
        >>> import torch
        >>> restore_columns_(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([True, False, True]))
        tensor([[1., 0., 1.]])
    """
    _check_pair(weight, weight_prev)
    check_mask("retained", retained, weight.shape[1], weight)
    for lines in blocks(*weight.shape):
        weight[lines] = torch.where(retained, weight_prev[lines], weight[lines])
    return weight


@torch.no_grad()
def zero_columns_(tensor: Tensor, retained: Tensor) -> Tensor:
    """Set the retained columns to zero, in place: of a gradient, an optimizer state or LoRA's `A`.

    Args:
        tensor: `(..., in_features)`; changed in place and returned.
        retained: boolean `(in_features,)`, True zeroes the column.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Example:
        >>> import torch
        >>> zero_columns_(torch.ones(2, 3), torch.tensor([True, False, True]))
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """
    if not isinstance(tensor, Tensor) or tensor.dim() < 1:
        raise ValueError(f"tensor: expected a tensor of shape (..., in_features), got {describe(tensor)}.")
    check_mask("retained", retained, tensor.shape[-1], tensor)
    return tensor.masked_fill_(retained, 0)


def adapter_direction(weight_prev: Tensor, lora_a: Tensor) -> Tensor:
    """`G = W_prev A^T`, `(out_features, q)` float64, without a float64 copy of the whole weight."""
    wide_a = lora_a.to(torch.float64)
    return torch.cat([weight_prev[lines].to(torch.float64) @ wide_a.T for lines in blocks(*weight_prev.shape)])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return torch.dot(left.flatten(), right.flatten())


def _check_pair(weight: Tensor, weight_prev: Tensor) -> None:
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("weight", weight, tuple(weight_prev.shape), like=weight_prev)
    check_same_dtype("weight", weight, "weight_prev", weight_prev)
