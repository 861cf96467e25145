"""Matrix products in float32: whether they are, and the fastest way to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def float32_products_are_exact(device: torch.device) -> bool:
    """Whether float32 matrix products are computed in float32 there; users may ask for less, in two ways.

    Once `torch.backends.*.fp32_precision` (torch 2.9) was set, `torch.get_float32_matmul_precision` raises.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is not None:
        return precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"


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
