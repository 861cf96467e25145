"""Inner products of whole weights: accurate, in one pass, without a wide copy.

Weights of at least 2^16 entries are multiplied in float32 over short chunks of rows whose sums are float64; smaller
ones and float64 weights in float64 throughout. What float32 loses, some 1e-7 of each product, averages out over many
entries. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hpa_lightning.functional.numerics import triton_kernels
from hpa_lightning.functional.numerics.checks import blocks

# Entries from which on rounding errors of float32 products average out.
_AVERAGING = 1 << 16
# 512 KiB in float32: a core's cache holds the few tensors of one chunk.
_CACHED_ENTRIES = 1 << 17


def working_dtype(weight: Tensor) -> torch.dtype:
    """In which a weight is multiplied."""
    small = weight.numel() < _AVERAGING
    return torch.float64 if small or weight.dtype == torch.float64 else torch.float32


def row_chunks(weight: Tensor) -> Iterator[slice]:
    """Slices of rows: on a CPU so short that what is computed of them stays in the cache."""
    rows, columns = weight.shape
    return blocks(rows, columns, None if weight.is_cuda else _CACHED_ENTRIES)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of two tensors of one chunk, float64."""
    return torch.dot(left.flatten(), right.flatten()).double()


def square_sum(weight: Tensor, retained: Tensor | None = None) -> Tensor:
    """`||W||_F^2` over the columns that are not retained, float64."""
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    wide = working_dtype(weight)
    for lines in row_chunks(weight):
        free = weight[lines].to(wide)
        free = free if retained is None else free.masked_fill(retained, 0.0)
        total = total + dot(free, free)
    return total


def update_product(weight: Tensor, weight_prev: Tensor, retained: Tensor | None = None) -> Tensor:
    """`<W - W_prev, W_prev>` over the columns that are not retained, float64."""
    if working_dtype(weight) == torch.float32 and triton_kernels.fits(weight, weight_prev):
        return triton_kernels.update_product(weight, weight_prev, retained)
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    wide = working_dtype(weight)
    for lines in row_chunks(weight):
        old = weight_prev[lines].to(wide)
        free = old if retained is None else old.masked_fill(retained, 0.0)
        total = total + dot(weight[lines].to(wide) - old, free)
    return total


def column_square_sums(weight: Tensor) -> Tensor:
    """`sum_i W_ij^2`, `(c,)` float64."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    wide = working_dtype(weight)
    for lines in row_chunks(weight):
        # Few rows on a CPU; more on CUDA, where the reduction itself is a tree.
        total += weight[lines].to(wide).square().sum(0)
    return total
