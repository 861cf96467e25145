"""Harmonious fusion after a task (step 3 of HPA): kept columns, and an orthogonal update elsewhere.

Block of rows by block of rows, with one cast when the result is written; float32 for large weights, float64 for small
and for float64 ones (`hpa_lightning.functional.numerics.inner_products`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    blocks,
    check_finite,
    check_float,
    check_mask,
    check_number,
    check_result,
    check_same_dtype,
    check_units,
    result_dtype,
)
from hpa_lightning.functional.numerics.inner_products import (
    row_chunks,
    square_sum,
    update_product,
    working_dtype,
)
from hpa_lightning.functional.numerics.matrix_products import float32_products_are_exact, quick_direction

Units = Literal["columns", "rows"]
_AXIS: dict[str, int] = {"rows": 0, "columns": 1}


@torch.no_grad()
def projection_scale(weight_prev: Tensor, weight_new: Tensor) -> Tensor:
    """Compute `s = <D, W_prev>_F / ||W_prev||_F^2` with `D = W_new - W_prev`; 0 where `W_prev = 0`.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: weight after it, same shape, any floating dtype.

    Returns:
        0-dim tensor, float64.

    Raises:
        ValueError: wrong shapes or non-finite values.

    Source: HPA (arXiv 2511.20158), step 3.

    Example:
        >>> import torch
        >>> old = torch.tensor([[1.0, 2.0]])
        >>> projection_scale(old, 1.5 * old)
        tensor(0.5000, dtype=torch.float64)
    """
    _check_weights(weight_prev, weight_new)
    return _dense_scale(weight_prev, weight_new)


@torch.no_grad()
def orthogonal_update(weight_prev: Tensor, weight_new: Tensor) -> Tensor:
    """Compute `W_tilde = W_prev + D - s W_prev`: the update without its part along the old weight.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: weight after it, same shape, any floating dtype.

    Returns:
        `(out_features, in_features)` in the dtype of `weight_prev`.

    Raises:
        ValueError: wrong shapes or non-finite values.

    Source: HPA (arXiv 2511.20158), step 3.

    Example:
        >>> import torch
        >>> orthogonal_update(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 1.0]]))
        tensor([[2., 1.]])
    """
    _check_weights(weight_prev, weight_new)
    nothing = torch.zeros(weight_prev.shape[1], dtype=torch.bool, device=weight_prev.device)
    return fuse(weight_prev, weight_new, nothing)


@torch.no_grad()
def fuse(
    weight_prev: Tensor,
    weight_new: Tensor,
    retained: Tensor,
    orthogonal: bool = True,
    scale: Tensor | None = None,
    units: Units = "columns",
    out: Tensor | None = None,
) -> Tensor:
    """Compute `W_hat = m * W_prev + (1 - m) * W_tilde`, the weight that is kept after the task.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: weight after it, same shape, any floating dtype.
        retained: the mask `m`, boolean `(in_features,)`; True keeps the old column, bit for bit.
        orthogonal: subtract `s W_prev` from the other columns; False takes `W_new` there (ablation).
        scale: `s` if it is known, `projection_scale(weight_prev, weight_new)`; None computes it.
        units: `"rows"` where the mask is over the output rows, `(out_features,)`.
        out: where the result is written, in the dtype of `weight_prev`; may be one of the two weights. None: a new
            tensor.

    Returns:
        `(out_features, in_features)` in the dtype of `weight_prev`.

    Raises:
        ValueError: wrong shapes, a mask that is not boolean, non-finite values, or a result that the dtype of
            `weight_prev` cannot hold; nothing is written then.

    Source: HPA (arXiv 2511.20158), step 3 and Algorithm 1.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[3.0, 1.0, 1.0]])
        >>> fuse(old, new, torch.tensor([False, True, False]))
        tensor([[2., 0., 1.]])
    """
    _check_weights(weight_prev, weight_new)
    check_units(units, _AXIS)
    check_mask("retained", retained, weight_prev.shape[_AXIS[units]], weight_prev)
    if not orthogonal:
        scale = torch.zeros((), device=weight_prev.device)
    elif scale is None:
        scale = _dense_scale(weight_prev, weight_new)
    if out is not None:
        check_float("out", out, tuple(weight_prev.shape), like=weight_prev)
        check_same_dtype("out", out, "weight_prev", weight_prev)
    wide = working_dtype(weight_prev)
    factor = scale.to(wide)

    def fused(lines: slice) -> Tensor:
        old = weight_prev[lines]
        new = weight_new[lines].to(wide) - factor * old.to(wide)
        return torch.where(_kept(retained, lines, units), old, new.to(old.dtype))

    lines_of = list(row_chunks(weight_prev))
    largest_old, largest_new = (
        torch.linalg.vector_norm(weight, math.inf).to(torch.float64) for weight in (weight_prev, weight_new)
    )
    if not _fits(largest_new + scale.abs() * largest_old, weight_prev.dtype, wide):
        check_finite("weight_prev", weight_prev)
        check_finite("weight_new", weight_new)
        for lines in lines_of:
            check_result("fused weight", fused(lines))
    result = torch.empty_like(weight_prev) if out is None else out
    for lines in lines_of:
        result[lines] = fused(lines)
    return result


@torch.no_grad()
def lora_fuse_(
    weight_prev: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    retained: Tensor,
    orthogonal: bool = True,
    units: Units = "columns",
) -> Tensor:
    """Write `fuse(W_prev, W_prev + g B A, retained)` into `W_prev`, in place.

    Column j becomes `(1 - s (1 - m_j)) W_prev[:, j] + (1 - m_j) g (B A)[:, j]` with
    `s = g <B, W_prev A^T> / ||W_prev||^2`. The weight is read once for `s` and written once; `B A` exists for
    a block of rows at a time. `A` and `B` are left as they are: reset them afterwards, or the update counts
    twice.

    Args:
        weight_prev: base weight, `(out_features, in_features)`, any floating dtype; changed in place.
        lora_a: `A`, `(q, in_features)`, any floating dtype.
        lora_b: `B`, `(out_features, q)`, any floating dtype.
        scaling: LoRA's factor `g`.
        retained: the mask `m`, boolean `(in_features,)`; True keeps the old column, bit for bit.
        orthogonal: subtract `s W_prev` from the other columns; False takes `s = 0` (ablation).
        units: `"rows"` where the mask is over the output rows, `(out_features,)`.

    Returns:
        `s`, 0-dim, float32 (float64 if an argument is float64); 0 if not `orthogonal`.

    Raises:
        ValueError: wrong shapes, a mask that is not boolean, non-finite values, or a result that the dtype of
            `weight_prev` cannot hold; nothing is changed then.

    Example:
        >>> import torch
        >>> weight, a, b = torch.tensor([[2.0, 0.0, 0.0]]), torch.ones(1, 3), torch.ones(1, 1)
        >>> lora_fuse_(weight, a, b, 1.0, torch.tensor([False, True, False]))
        tensor(0.5000)
        >>> weight
        tensor([[2., 0., 1.]])
    """
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("lora_a", lora_a, ("q", weight_prev.shape[1]), like=weight_prev)
    check_float("lora_b", lora_b, (weight_prev.shape[0], lora_a.shape[0]), like=weight_prev)
    check_number("scaling", scaling)
    check_units(units, _AXIS)
    check_mask("retained", retained, weight_prev.shape[_AXIS[units]], weight_prev)
    for name, tensor in (("lora_a", lora_a), ("lora_b", lora_b)):
        check_finite(name, tensor)
    square = square_sum(weight_prev)
    if not bool(torch.isfinite(square)):
        check_finite("weight_prev", weight_prev)
        check_result("norm of weight_prev", square)
    scale = torch.zeros_like(square)
    if orthogonal:
        product = scaling * (lora_b.to(torch.float64) * quick_direction(weight_prev, lora_a)).sum()
        scale = check_result("projection scale", torch.where(square > 0, product / square, 0.0))
    reported = check_result("projection scale", scale.to(result_dtype(weight_prev, lora_a, lora_b)))
    wide = working_dtype(weight_prev) if float32_products_are_exact(weight_prev.device) else torch.float64
    wide_a, wide_b, factor = lora_a.to(wide), lora_b.to(wide), scale.to(wide)

    def fused(lines: slice) -> Tensor:
        old = weight_prev[lines]
        new = old.to(wide)
        new = torch.addmm(new - factor * new, wide_b[lines], wide_a, alpha=scaling)
        return torch.where(_kept(retained, lines, units), old, new.to(old.dtype))

    with torch.autocast(weight_prev.device.type, enabled=False):
        size_a, size_b = (torch.linalg.vector_norm(one.to(torch.float64)) for one in (lora_a, lora_b))
        largest = square.sqrt() * (1.0 + scale.abs()) + abs(scaling) * size_a * size_b
        if not _fits(largest, weight_prev.dtype, wide):
            for lines in blocks(*weight_prev.shape):
                check_result("fused weight", fused(lines))
        for lines in blocks(*weight_prev.shape):
            weight_prev[lines] = fused(lines)
    return reported


def _fits(largest: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether entries up to ``largest`` fit (waits for the device); else each is looked at before it is written."""
    return bool(largest < 0.5 * min(torch.finfo(dtype).max for dtype in dtypes))


def _kept(retained: Tensor, lines: slice, units: Units) -> Tensor:
    """The mask of those rows' entries, as it broadcasts."""
    return retained if units == "columns" else retained[lines].unsqueeze(1)


def _dense_scale(weight_prev: Tensor, weight_new: Tensor) -> Tensor:
    product, square = update_product(weight_new, weight_prev), square_sum(weight_prev)
    if not bool(torch.isfinite(product) & torch.isfinite(square)):
        check_finite("weight_prev", weight_prev)
        check_finite("weight_new", weight_new)
        check_result("norm of weight_prev and its product with the update", torch.stack([product, square]))
    return check_result("projection scale", torch.where(square > 0, product / square, 0.0))


def _check_weights(weight_prev: Tensor, weight_new: Tensor) -> None:
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("weight_new", weight_new, tuple(weight_prev.shape), like=weight_prev)
