"""Projection of LoRA adapters inside the optimizer step: updates `B A` stay orthogonal to the frozen base weights.

In place and without host synchronisation, as :mod:`hpa_lightning.functional.projection`, which names the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    check_float,
    result_dtype,
)
from hpa_lightning.functional.numerics.matrix_products import quick_direction
from hpa_lightning.functional.numerics.rounding import cancel_residual, slots_by_size
from hpa_lightning.functional.projection import COSINE_BOUND

# 1 - cos^2 of the angle between B and G below which B is parallel to G up to the rounding of float32.
_PARALLEL = 1e-13
# A product B A that is smaller than this share of ||B|| ||A|| is rounding, for an adapter stored in float32.
_PRODUCT_DUST = 1e-6
# Rounding errors of that many float32 entries of B average out to well below the bound.
_SELF_AVERAGING = 4096
# Entries of B among which those that take the leftover of rounding are chosen, at every step.
_CANDIDATES = 1 << 14
# Entries of B that are corrected at once: 256 MiB in float64 on a GPU; few enough for a CPU's caches.
_STACKED_ENTRIES, _CACHED_ENTRIES = 1 << 25, 1 << 17


class LoraTensors(NamedTuple):
    """The tensors of one LoRA layer, `W = weight_prev + g B A`; `B` and `weight_prev` may be some rows of it.

    Attributes:
        lora_b: `B`, `(out_features, q)`, any floating dtype.
        lora_a: `A`, `(q, in_features)`, any floating dtype.
        weight_prev: frozen base weight, `(out_features, in_features)`, any floating dtype.
    """

    lora_b: Tensor
    lora_a: Tensor
    weight_prev: Tensor


@torch.no_grad()
def project_lora_updates_(layers: Sequence[LoraTensors], reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Make the LoRA updates of several layers orthogonal to their frozen base weights, in place on `B`.

    `<B A, W_prev> = <B, G>` with `G = W_prev A^T`, so that `B <- B - (<B, G> / ||G||_F^2) G` gives
    `<B A, W_prev> = 0` without leaving the adapter: neither `B A` nor a snapshot is needed. `G = 0` leaves
    `B` as it is. Columns kept by `A[:, j] = 0` stay kept. Where only `B A = 0` is orthogonal (a weight of one
    entry), and where `B` is parallel to `G` up to its own rounding, `B` becomes 0.

    For a stored float32 `B`, `|<B A, W_prev>| <= 1e-6 ||B A|| ||W_prev||`. A half-precision (or small) `B`
    has its leftover of rounding moved to a few of its entries (see `hpa_lightning.functional.numerics.rounding`). That
    reaches the same bound in half precision from a few hundred entries of `B` on; below, the dtype may hold no
    such `B`.

    Args:
        layers: on one device.
        reduce: sums a float64 tensor over the processes that hold the other rows of `B` and `W_prev`, called once
            for all layers; None: they are whole.

    Returns:
        The shares `<B, G> / ||G||_F^2` of `G` that were removed, `(layers,)`.

    Raises:
        ValueError: wrong shapes, dtypes or devices.
    """
    for index, (lora_b, lora_a, weight_prev) in enumerate(layers):
        check_float(f"layer {index}, weight_prev", weight_prev, ("r", "c"), like=layers[0].weight_prev)
        check_float(f"layer {index}, lora_a", lora_a, ("q", weight_prev.shape[1]), like=weight_prev)
        check_float(f"layer {index}, lora_b", lora_b, (weight_prev.shape[0], lora_a.shape[0]), like=weight_prev)
    parts = list(_alike(layers))
    if reduce is None:
        whole = (_LoraStack([layers[i] for i in members]) for members in parts)
        shares = _by_layer(parts, (stack.correct_(stack.sums, None) for stack in whole))
    else:
        stacks = [_LoraStack([layers[i] for i in members]) for members in parts]
        # By layer, since the processes cut their rows into different parts.
        total = reduce(_by_layer(parts, (stack.sums for stack in stacks))).unbind(1)
        totals = (torch.stack([total[i] for i in members], dim=1) for members in parts)
        shares = _by_layer(parts, (stack.correct_(one, stack.sums) for stack, one in zip(stacks, totals, strict=True)))
    return shares.to(result_dtype(*(tensor for layer in layers for tensor in layer)))


def _by_layer(parts: Sequence[list[int]], values: Iterable[Tensor]) -> Tensor:
    """Put values `(..., g)` of parts, whose members are given, into the order of the layers, `(..., layers)`."""
    columns = {
        i: one
        for members, value in zip(parts, values, strict=True)
        for i, one in zip(members, value.unbind(-1), strict=True)
    }
    return torch.stack([columns[i] for i in range(len(columns))], dim=-1)


def _alike(layers: Sequence[LoraTensors]) -> Iterator[list[int]]:
    """Cut the layers into parts of equal `B`s, which are corrected at once: a GPU waits for the launches otherwise."""
    groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for index, (lora_b, *_) in enumerate(layers):
        groups.setdefault((lora_b.shape, lora_b.dtype), []).append(index)
    for members in groups.values():
        lora_b = layers[members[0]].lora_b
        together = max(1, (_STACKED_ENTRIES if lora_b.is_cuda else _CACHED_ENTRIES) // lora_b.numel())
        for start in range(0, len(members), together):
            yield members[start : start + together]


class _LoraStack:
    """LoRA layers whose `B` have one shape `(r, q)` and dtype, g of them."""

    def __init__(self, layers: Sequence[LoraTensors]) -> None:
        self.factors = [layer.lora_b for layer in layers]
        self.exact = torch.stack(self.factors).to(torch.float64)
        self.direction = torch.stack([quick_direction(layer.weight_prev, layer.lora_a) for layer in layers])
        wide = (layer.lora_a.to(torch.float64) for layer in layers)
        self.gram = torch.stack([lora_a @ lora_a.T for lora_a in wide])
        pairs = ((self.exact, self.direction), (self.direction, self.direction), (self.exact, self.exact))
        self.sums = torch.stack([_dots(left, right) for left, right in pairs])
        """`<B, G>`, `||G||^2` and `||B||^2` of these rows, `(3, g)`."""

    def correct_(self, total: Tensor, own: Tensor | None) -> Tensor:
        """Write `B - share G`; return the shares, `(g,)`.

        Args:
            total: the sums over all rows.
            own: the sums of these rows; None: they are all.
        """
        product, square, before = total
        share = torch.where(square > 0, product / square, 0.0)
        vanishes = (before * square - product.square() <= _PARALLEL * before * square) & (square > 0)
        # What has to stay of <B, G> in these rows.
        target = torch.zeros_like(share) if own is None else own[0] - share * own[1]
        local_square = total[1] if own is None else own[1]
        dtype = self.factors[0].dtype
        stored = (self.exact - share[:, None, None] * self.direction).masked_fill_(vanishes[:, None, None], 0.0)
        stored = stored.to(dtype).to(torch.float64)
        size_a = self.gram.diagonal(dim1=1, dim2=2).sum(1)
        product = ((stored.mT @ stored) * self.gram).sum((1, 2)).clamp_min(0.0)
        residual = _dots(stored, self.direction) - torch.where(vanishes, 0.0, target)
        # ||W_prev|| >= ||G|| / ||A|| saves another pass over the weight.
        broken = residual.square() * size_a > COSINE_BOUND**2 * product * local_square
        # With one row or one live column, say, orthogonal may mean B A = 0: rounding must not leave the opposite.
        dust = product <= _PRODUCT_DUST**2 * _dots(stored, stored) * size_a
        stored = stored.masked_fill_((broken & dust)[:, None, None], 0.0)
        if dtype in (torch.float16, torch.bfloat16) or stored[0].numel() < _SELF_AVERAGING:
            # An ulp of B moves the inner product in proportion to |B G|, here not to G^2.
            slots = slots_by_size(self.direction, (stored * self.direction).abs_().sqrt_(), _CANDIDATES)
            index = slots.rows * stored.shape[2] + slots.columns
            leftover = torch.where(broken & ~dust, residual, 0.0)
            flat = stored.flatten(1)
            values, *_ = cancel_residual(flat.gather(1, index), dtype, slots, None, leftover, _dots(stored, stored))
            flat.scatter_(1, index, values)
        torch._foreach_copy_(self.factors, list(stored.to(dtype).unbind()))
        return share


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """The inner products of g pairs of float64 matrices, `(g,)`."""
    found: Tensor = torch.linalg.vecdot(left.flatten(1), right.flatten(1))
    return found


@torch.no_grad()
def project_lora_(lora_b: Tensor, lora_a: Tensor, weight_prev: Tensor) -> Tensor:
    """Make one layer's LoRA update orthogonal to its frozen base weight; see `project_lora_updates_`.

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
    return project_lora_updates_([LoraTensors(lora_b, lora_a, weight_prev)])[0]
