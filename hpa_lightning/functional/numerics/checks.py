"""Argument checks and row blocks shared by the functional core.

The checks read shapes, dtypes and devices only, except `check_finite`, which reads values and therefore waits
for the device: functions that run inside the optimizer step do not call it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from hpa_lightning.values import shown

# 2^23 entries are 64 MiB in float64: large enough to keep a GPU busy, small beside one layer's weight.
BLOCK_ENTRIES = 1 << 23
# Few enough for a CPU's caches, enough for products at full speed.
CACHE_ENTRIES = 1 << 21


def describe(tensor: object) -> str:
    """Say what a value is, for an error message: `float32 tensor of shape (2, 3) on cpu`."""
    if not isinstance(tensor, Tensor):
        return f"{type(tensor).__name__} {shown(tensor)}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    kind = "tensor" if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} tensor"
    place = "meta (without values)" if tensor.is_meta else tensor.device
    return f"{dtype} {kind} of shape {tuple(tensor.shape)} on {place}"


def is_dense(tensor: object) -> bool:
    """Whether a value is a tensor that holds all its values: not sparse, not on the meta device."""
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta


def check_float(name: str, tensor: Tensor, shape: tuple[str | int, ...], like: Tensor | None = None) -> None:
    """Require a floating-point tensor of `shape`; a letter in `shape` stands for any size >= 1."""
    expected = "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"
    good = is_dense(tensor) and tensor.is_floating_point() and tensor.dim() == len(shape)
    if good:
        good = all(
            actual == wanted if isinstance(wanted, int) else actual >= 1
            for actual, wanted in zip(tensor.shape, shape, strict=True)
        )
    if not good:
        raise ValueError(f"{name}: expected a floating-point tensor of shape {expected}, got {describe(tensor)}.")
    if like is not None and tensor.device != like.device:
        raise ValueError(
            f"{name}: expected a tensor on {like.device} like the other arguments, got {describe(tensor)}."
        )


def check_units(units: object, known: Collection[str]) -> None:
    """Require one of the names of what a mask counts."""
    if not isinstance(units, str) or units not in known:
        raise ValueError(f"units: expected one of {sorted(known)}, got {shown(units)}.")


def check_mask(name: str, mask: Tensor, length: int, like: Tensor) -> None:
    """Require a boolean `(length,)` tensor on the device of `like`."""
    good = is_dense(mask) and mask.dtype == torch.bool and tuple(mask.shape) == (length,)
    if not good or mask.device != like.device:
        raise ValueError(
            f"{name}: expected a boolean tensor of shape ({length},) on {like.device} "
            f"(True keeps the old column or row), got {describe(mask)}."
        )


def check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Require equal dtypes where values must travel bit for bit."""
    if tensor.dtype != other.dtype:
        raise ValueError(
            f"{name} and {other_name} must have the same dtype, or a column could not be kept bit for bit: "
            f"got {describe(tensor)} and {describe(other)}."
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Require finite values (waits for the device)."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite of {tensor.numel()} in a "
            f"{describe(tensor)}. Look for an overflow or a diverged loss where it was computed."
        )


def check_result(name: str, result: Tensor) -> Tensor:
    """Return a result of finite values if it is finite too (waits for the device)."""
    bad = int((~torch.isfinite(result)).sum())
    if bad:
        raise ValueError(
            f"{name}: {bad} of {result.numel()} values do not fit the result, a {describe(result)}, or overflow on the "
            "way to it, though the arguments are finite. Check their scale, or take a dtype of wider range."
        )
    return result


def check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Require a finite number in `[low, high]`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}: expected a finite number in [{low:g}, {high:g}], got {shown(value)}.")


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Dtype of a statistic of `tensors`: float64 if one of them is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def blocks(length: int, width: int, entries: int | None = None) -> Iterator[slice]:
    """Slices that cut `length` lines of `width` entries into blocks of at most `entries` (`BLOCK_ENTRIES`) entries."""
    step = max(1, (entries or BLOCK_ENTRIES) // max(1, width))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def cache_blocks(matrix: Tensor) -> Iterator[slice]:
    """Slices of a matrix's rows for several passes over each: what a CPU's caches hold; on a GPU all rows at once."""
    return blocks(matrix.shape[0], matrix.shape[1], CACHE_ENTRIES if matrix.device.type == "cpu" else matrix.numel())
