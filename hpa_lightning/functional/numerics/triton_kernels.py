"""Triton kernels for what runs on whole weights after every optimizer step on a GPU.

Each does in one pass over the weight what torch's operations do in many: at the size of a 7B model these are bound by
memory, and a chain of small dependent operations by their launches. They compute what the code in `_sums`, `projection`
and `rounding` does, in the same precision; sums are formed in another order. Where Triton cannot run (no Triton, no C
compiler), that code runs in their place, with one warning.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows, macOS: torch comes without Triton
    triton = None

_BLOCK = 4096


@functools.cache
def _runs() -> bool:
    """Whether Triton can build a kernel here."""
    if triton is None:
        return False
    try:
        probe = torch.zeros(1, device="cuda", dtype=torch.float64)
        _single_slots_kernel[(1,)](
            probe, probe, probe, probe, probe, 1, 1, 0, SINGLE_SLOTS=0, BLOCK=1, DTYPE=tl.float32
        )
    except Exception as error:  # whatever it lacks, PyTorch's operations do the same
        warnings.warn(
            f"Triton cannot build kernels here ({type(error).__name__}: {str(error)[:200]}). The steps of "
            "OrthogonalProjection run by PyTorch's own operations, which is slower; a C compiler is what is missing "
            "most often.",
            stacklevel=2,
        )
        return False
    return True


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: on a GPU, contiguous, of at most 32 bits."""
    return (
        all(
            one.is_cuda and one.is_contiguous() and one.dtype in (torch.float16, torch.bfloat16, torch.float32)
            for one in tensors
        )
        and _runs()
    )


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments' is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def update_product(weight: Tensor, weight_prev: Tensor, retained: Tensor | None) -> Tensor:
    """`<W - W_prev, W_prev>` over the columns that are not retained, float64."""
    count = weight.numel()
    parts = triton.cdiv(count, _BLOCK)
    partial = torch.empty(parts, dtype=torch.float64, device=weight.device)
    mask = None if retained is None else retained.contiguous()
    with _device_of(weight):
        _product_kernel[(parts,)](
            weight, weight_prev, mask, partial, count, weight.shape[1], MASKED=mask is not None, BLOCK=_BLOCK
        )
    return partial.sum()


def subtract_(weight: Tensor, weight_prev: Tensor, retained: Tensor | None, share: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract `share * P` and return `<D, W_prev>` and `||D||^2` of what is stored then, float64."""
    count = weight.numel()
    parts = triton.cdiv(count, _BLOCK)
    partial = torch.empty(2, parts, dtype=torch.float64, device=weight.device)
    mask = None if retained is None else retained.contiguous()
    residuals, squares = partial
    with _device_of(weight):
        _subtract_kernel[(parts,)](
            weight,
            weight_prev,
            mask,
            share,
            residuals,
            squares,
            count,
            weight.shape[1],
            MASKED=mask is not None,
            BLOCK=_BLOCK,
        )
    residual, norm_square = partial.sum(1)
    return residual, norm_square


def copy_where_(weight: Tensor, weight_prev: Tensor, back: Tensor) -> None:
    """`W = W_prev` where the 0-dim boolean says so; nothing is read otherwise."""
    count = weight.numel()
    with _device_of(weight):
        _copy_kernel[(triton.cdiv(count, _BLOCK),)](weight, weight_prev, back, count, BLOCK=_BLOCK)


def cancel_residual_one_by_one(
    values: Tensor, dtype: torch.dtype, direction: Tensor, first: int, residual: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """The slots from `first` on take what is left one by one; return their values and the residuals."""
    weights, slots = values.shape
    settled = torch.empty(weights, slots - first, dtype=torch.float64, device=values.device)
    residual = residual.clone()
    block = min(64, triton.next_power_of_2(weights))
    with _device_of(values):
        _single_slots_kernel[(triton.cdiv(weights, block),)](
            values.contiguous(),
            direction.contiguous(),
            residual,
            limit.contiguous(),
            settled,
            weights,
            slots,
            first,
            SINGLE_SLOTS=slots - first,
            BLOCK=block,
            DTYPE={torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype],
        )
    return settled, residual


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _product_kernel(  # type: ignore[no-untyped-def]
        weight, before, retained, partial, count, columns, MASKED: tl.constexpr, BLOCK: tl.constexpr
    ):
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = place < count
        old = tl.load(before + place, mask=live, other=0.0).to(tl.float32)
        delta = tl.load(weight + place, mask=live, other=0.0).to(tl.float32) - old
        if MASKED:
            old = tl.where(tl.load(retained + place % columns, mask=live, other=0) != 0, 0.0, old)
        tl.store(partial + tl.program_id(0), tl.sum((delta * old).to(tl.float64)))

    @triton.jit  # type: ignore[untyped-decorator]
    def _subtract_kernel(  # type: ignore[no-untyped-def]
        weight,
        before,
        retained,
        share,
        residual,
        norm_square,
        count,
        columns,
        MASKED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = place < count
        stored = tl.load(before + place, mask=live, other=0.0)
        old = stored.to(tl.float32)
        factor = tl.load(share).to(tl.float32)
        new = (tl.load(weight + place, mask=live, other=0.0).to(tl.float32) - factor * old).to(weight.dtype.element_ty)
        if MASKED:
            new = tl.where(tl.load(retained + place % columns, mask=live, other=0) != 0, stored, new)
        tl.store(weight + place, new, mask=live)
        delta = new.to(tl.float32) - old
        tl.store(residual + tl.program_id(0), tl.sum((delta * old).to(tl.float64)))
        tl.store(norm_square + tl.program_id(0), tl.sum((delta * delta).to(tl.float64)))

    @triton.jit  # type: ignore[untyped-decorator]
    def _copy_kernel(weight, before, back, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        if tl.load(back) != 0:
            place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            live = place < count
            tl.store(weight + place, tl.load(before + place, mask=live, other=0.0), mask=live)

    @triton.jit  # type: ignore[untyped-decorator]
    def _single_slots_kernel(  # type: ignore[no-untyped-def]
        values,
        direction,
        residual,
        limit,
        settled,
        weights,
        slots,
        first,
        SINGLE_SLOTS: tl.constexpr,
        BLOCK: tl.constexpr,
        DTYPE: tl.constexpr,
    ):
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        live = row < weights
        left = tl.load(residual + row, mask=live, other=0.0)
        high = tl.load(limit + row, mask=live, other=0.0)
        for i in range(SINGLE_SLOTS):
            place = row * slots + first + i
            slope = tl.load(direction + place, mask=live, other=0.0)
            old = tl.load(values + place, mask=live, other=0.0)
            usable = slope != 0.0
            move = tl.where(usable, left / tl.where(usable, slope, 1.0), 0.0)
            move = tl.where(move > high, high, tl.where(move < -high, -high, move))
            new = (old - move).to(tl.float32).to(DTYPE).to(tl.float64)
            left += (new - old) * slope
            tl.store(settled + row * SINGLE_SLOTS + i, new, mask=live)
        tl.store(residual + row, left, mask=live)
