"""bfloat16 on processors that have no instructions for it: matrix products by way of float32."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
_PRODUCTS = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN.bmm.default,
        _ATEN.baddbmm.default,
        _ATEN.convolution.default,
        _ATEN.convolution_backward.default,
        _ATEN.linear.default,  # comes as it is where no gradient can be asked for
        _ATEN.matmul.default,
        _ATTENTION,
        _ATTENTION_BACKWARD,
    }
)
_MUCH_SLOWER = 3.0
"""With the instructions bfloat16 is faster than float32; without them it takes six to twenty times as long."""


class _Active(threading.local):
    products = False


_active = _Active()


class Float32Products(TorchDispatchMode):
    """Matrix products, convolutions and attention of bfloat16 tensors on the CPU are computed in float32.

    The operands are bfloat16 numbers, their products are added up in float32, and the result is rounded to bfloat16:
    what a processor with bfloat16 instructions does, but for the order of the sum, and for attention, whose
    probabilities stay in float32. All else, and all other types, pass.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not _of_halves(func, (*args, *kwargs.values())):
            return func(*args, **kwargs)
        found = func(*tree_map_only(Tensor, _wider, args), **tree_map_only(Tensor, _wider, kwargs))
        if func is _ATTENTION:
            output, log_sums = found
            return output.to(torch.bfloat16), log_sums  # the sums are of float32 anyway
        return tree_map_only(Tensor, _rounded, found)


@contextmanager
def float32_products() -> Iterator[None]:
    """:class:`Float32Products`, once where contexts lie in each other."""
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

    It is measured once in a process, which takes some hundredths of a second.
    """
    with torch.no_grad():
        a, b = torch.ones(64, 512, dtype=torch.bfloat16), torch.ones(512, 512, dtype=torch.bfloat16)
        return _seconds(lambda: a @ b) / _seconds(lambda: (a.float() @ b.float()).to(torch.bfloat16))


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
    """Whether all operands are bfloat16 on the CPU: a product of two types is an error, and stays one."""
    of_attention = {_ATTENTION: 3, _ATTENTION_BACKWARD: 4}  # (gradient,) query, key, value: the rest may be of float32
    tensors = [one for one in values[: of_attention.get(func)] if isinstance(one, Tensor)]
    return all(one.dtype == torch.bfloat16 and one.device.type == "cpu" for one in tensors)


def _wider(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
