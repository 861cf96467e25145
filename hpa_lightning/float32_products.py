"""bfloat16 on processors that have no instructions for it: matrix products by way of float32."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_ATEN = torch.ops.aten
_ATTENTION = _ATEN._scaled_dot_product_flash_attention_for_cpu.default
_ATTENTION_BACKWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default
_MATRICES = frozenset({_ATEN.mm.default, _ATEN.addmm.default, _ATEN.linear.default, _ATEN.matmul.default})
"""Of two matrices; `linear` and `matmul` come as they are where no gradient can be asked for."""
_GROUPED = getattr(_ATEN, "_grouped_mm", None)  # of mixtures of experts
_PRODUCTS = _MATRICES | {
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN.convolution.default,
    _ATEN.convolution_backward.default,
    _ATTENTION,
    _ATTENTION_BACKWARD,
    *((_GROUPED.default,) if _GROUPED is not None else ()),
}
_FEW_ROWS = 2
"""Of a matrix-vector product PyTorch's own bfloat16 is not slow: it takes as long as reading the matrix."""
_BLOCK = 512
"""Rows of a matrix that are in float32 at a time: they stay in the processor's cache."""
_MUCH_SLOWER = 3.0
"""With the instructions bfloat16 is about as fast as float32, or faster; without them ten times as slow, and more."""


class _Active(threading.local):
    products = False


_active = _Active()


class Float32Products(TorchDispatchMode):
    """Matrix products, convolutions and attention of bfloat16 tensors on the CPU are computed in float32.

    The operands are bfloat16 numbers, their products are added up in float32, and the result is rounded to bfloat16:
    what a processor with bfloat16 instructions does, but for the order of the sum, and for attention, whose
    probabilities stay in float32. All else and all other types pass, and so do products in place (``addmm_``,
    ``out=``), the fused recurrent layers, and those of other threads.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not _of_halves(func, (*args, *kwargs.values())):
            return func(*args, **kwargs)
        if func in _MATRICES and not kwargs and (matrices := _as_matrices(func, args)) is not None:
            first, second, bias, shape = matrices
            if len(first) <= _FEW_ROWS:
                return func(*args)
            return _matrix_product(first, second, bias).view(shape)
        found = func(*tree_map_only(Tensor, _wider, args), **tree_map_only(Tensor, _wider, kwargs))
        if func is _ATTENTION:
            output, log_sums = found
            return output.to(torch.bfloat16), log_sums  # the sums are of float32 anyway
        return tree_map_only(Tensor, _rounded, found)


def _as_matrices(func: Any, args: Any) -> tuple[Tensor, Tensor, Tensor | None, Sequence[int]] | None:
    """A ``(rows, n)``, B ``(n, columns)``, what is added to each row, the result's shape; ``None`` if others."""
    if func is _ATEN.addmm.default:
        bias, first, second = args
        return (first, second, bias, (len(first), second.shape[1])) if bias.ndim == 1 else None
    if func is _ATEN.linear.default:
        first, weight, bias = (*args, None)[:3]
        if weight.ndim != 2 or first.ndim < 2:
            return None
        return first.reshape(-1, weight.shape[1]), weight.t(), bias, (*first.shape[:-1], len(weight))
    first, second = args
    return (first, second, None, (len(first), second.shape[1])) if first.ndim == second.ndim == 2 else None


def _matrix_product(first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
    """``A B (+ bias)``, the larger one block by block: all of it in float32 would be written to memory and read."""
    found = first.new_empty(first.shape[0], second.shape[1])
    added = None if bias is None else bias.float()
    if first.numel() > second.numel():
        other = second.float()
        for rows, out in zip(first.split(_BLOCK), found.split(_BLOCK), strict=True):
            out.copy_(rows.float() @ other if added is None else torch.addmm(added, rows.float(), other))
        return found
    other, added = first.float(), None if added is None else added.expand(second.shape[1])
    for begin in range(0, second.shape[1], _BLOCK):
        columns = slice(begin, begin + _BLOCK)
        block = second[:, columns].float()
        found[:, columns] = other @ block if added is None else torch.addmm(added[columns], other, block)
    return found


@contextmanager
def float32_products() -> Iterator[None]:
    """:class:`Float32Products`, once where contexts lie in each other: the outer one has to end last."""
    if _active.products:
        yield
        return
    _active.products = True
    try:
        with Float32Products():  # type: ignore[no-untyped-call]
            yield
    finally:
        _active.products = False


def products_on(device: torch.device | str) -> AbstractContextManager[None]:
    """What a bfloat16 model that runs outside a Trainer is called in: :func:`float32_products` where that is faster."""
    return float32_products() if torch.device(device).type == "cpu" and bfloat16_is_slow() else nullcontext()


def bfloat16_is_slow() -> bool:
    """Whether the processor computes products of bfloat16 much slower than those of float32."""
    return product_slowdown() > _MUCH_SLOWER


@cache
def product_slowdown() -> float:
    """Time of a bfloat16 matrix product over that of the same one by :class:`Float32Products`, on this processor.

    It is measured once in a process, which takes some tenths of a second where bfloat16 is slow.
    """
    with ThreadPoolExecutor(1) as pool:  # in which no mode, autocast or device of the caller's is on
        return pool.submit(_measured).result()


@torch.no_grad()
def _measured() -> float:
    a, b = torch.ones(64, 512, dtype=torch.bfloat16), torch.ones(512, 512, dtype=torch.bfloat16)
    return _seconds(lambda: a @ b) / _seconds(lambda: _matrix_product(a, b, None))


def _seconds(product: Callable[[], Tensor]) -> float:
    """The shortest of some, which a busy machine makes longer at times."""
    product()
    found = []
    for _ in range(7):
        began = time.perf_counter()
        product()
        found.append(time.perf_counter() - began)
    return min(found)


def _of_halves(func: Any, values: Sequence[Any]) -> bool:
    """Whether all operands are plain bfloat16 tensors on the CPU: what is an error otherwise stays one."""
    of_attention = {_ATTENTION: 3, _ATTENTION_BACKWARD: 4}  # (gradient,) query, key, value: the rest may be of float32
    tensors = [one for one in values[: of_attention.get(func)] if isinstance(one, Tensor)]
    numbers = [one for one in tensors if one.is_floating_point()]
    return bool(numbers) and all(
        one.dtype == torch.bfloat16 and one.device.type == "cpu" and one.layout == torch.strided and not one.is_nested
        for one in numbers
    )


def emulating() -> bool:
    """Whether :func:`float32_products` is on in this thread."""
    return _active.products


def _wider(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
