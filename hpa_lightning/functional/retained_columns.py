"""Retained columns inside the optimizer step: copied back from before the task, or set to zero."""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    blocks,
    check_float,
    check_mask,
    check_same_dtype,
    describe,
    is_dense,
)


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
    check_pair(weight, weight_prev)
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
    if not is_dense(tensor) or tensor.dim() < 1:
        raise ValueError(f"tensor: expected a tensor of shape (..., in_features), got {describe(tensor)}.")
    check_mask("retained", retained, tensor.shape[-1], tensor)
    return tensor.masked_fill_(retained, 0)


def check_pair(weight: Tensor, weight_prev: Tensor) -> None:
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("weight", weight, tuple(weight_prev.shape), like=weight_prev)
    check_same_dtype("weight", weight, "weight_prev", weight_prev)
