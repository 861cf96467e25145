"""Matrix products in float32: whether they are, and the fastest way to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import blocks
from hpa_lightning.functional.numerics.inner_products import working_dtype

# CUDA compute capabilities whose float64 is a half of float32, or more: P100, V100, A100, H100 and H200, B200. On other
# cards it is a 32nd or a 64th.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
# Entries that are converted to float32 at once: few enough for the caches, enough for products at full speed.
_CPU_CONVERTED_ENTRIES = 1 << 20


def float32_products_are_exact(device: torch.device) -> bool:
    """Whether float32 matrix products are computed in float32 there; users may ask for less, in two ways.

    Once `torch.backends.*.fp32_precision` (torch 2.9) was set, `torch.get_float32_matmul_precision` raises.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is not None:
        return precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"


def float64_is_fast(device: torch.device) -> bool:
    """Whether float64 costs about twice as much as float32 there, not 32 or 64 times."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) in _FAST_FLOAT64


def product_of_rows(left: Tensor, right: Tensor) -> Tensor:
    """`left right^T`, float32, of float32 rows, or of half-precision rows on CUDA."""
    if left.dtype != torch.float32:
        return torch.mm(left, right.T, out_dtype=torch.float32)
    linear = onednn_linear() if left.device.type == "cpu" else None
    return torch.mm(left, right.T) if linear is None else linear(left, right, None, "none", [], "")


def onednn_linear() -> Callable[..., Tensor] | None:
    """OneDNN's product, as torch's compiler calls it; `None` where this torch has none.

    `torch.mm` takes MKL, which left half the speed of the AMD processors that it was tried on unused.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def adapter_direction(weight_prev: Tensor, lora_a: Tensor) -> Tensor:
    """`G = W_prev A^T`, `(out_features, q)` float64, without a float64 copy of the whole weight."""
    wide_a = lora_a.to(torch.float64)
    return torch.cat([weight_prev[lines].to(torch.float64) @ wide_a.T for lines in blocks(*weight_prev.shape)])


def quick_direction(weight_prev: Tensor, lora_a: Tensor) -> Tensor:
    """`G = W_prev A^T`, `(out_features, q)` float64, for every step: one pass over a large weight in its own dtype.

    The error is one of A, in its 17th bit on the tensor cores and in its last elsewhere: `<B dA, W_prev>` with a dA
    that knows nothing of W_prev, which is as far below `||B dA|| ||W_prev||` as random directions are orthogonal.
    """
    if working_dtype(weight_prev) == torch.float64:
        return adapter_direction(weight_prev, lora_a)
    a = lora_a.float()
    with torch.autocast(weight_prev.device.type, enabled=False):
        if weight_prev.is_cuda and weight_prev.dtype == torch.bfloat16 and "dtype" in torch.ops.aten.mm.overloads():
            high = a.to(torch.bfloat16)
            low = (a - high).to(torch.bfloat16)
            both = product_of_rows(weight_prev, torch.cat([high, low]))
            return (both[:, : len(a)].double() + both[:, len(a) :]).contiguous()
        if float32_products_are_exact(weight_prev.device):
            if weight_prev.dtype == torch.float32:
                return product_of_rows(weight_prev, a).double()
            rows, columns = weight_prev.shape
            parts = blocks(rows, columns, None if weight_prev.is_cuda else _CPU_CONVERTED_ENTRIES)
            return torch.cat([product_of_rows(weight_prev[lines].float(), a) for lines in parts]).double()
    return adapter_direction(weight_prev, lora_a)
