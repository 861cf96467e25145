"""Projections for use inside the optimizer step: retained columns stay, updates stay orthogonal.

Everything here is in place, reads shapes and dtypes only and causes no host synchronisation on CUDA.

Inner products are those of `hpa_lightning.functional._sums`; their error is far below the bound of 1e-6.

Source: HPA (arXiv 2511.20158), step 3, applied to every step. Decision: the projection acts on the weights
after the optimizer's step, not on the gradients, since momentum, adaptive scaling and decoupled weight decay
all leave the subspace in which a gradient was put.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpa_lightning.functional._checks import (
    blocks,
    check_float,
    check_mask,
    check_same_dtype,
    describe,
    result_dtype,
)
from hpa_lightning.functional._products import quick_direction
from hpa_lightning.functional._sums import (
    dot,
    square_sum,
    stretches,
    update_product,
    working_dtype,
)
from hpa_lightning.functional.rounding import RoundingSlots, rounding_slots, settle_rounding_, slots_by_size

# |<D, W_prev>| / (||D|| ||W_prev||) that `project_update_` lets stand; the promise is 1e-6.
_COSINE_BOUND = 0.9e-6
# 1 - cos^2 of the angle between B and G below which B is parallel to G up to the rounding of float32.
_PARALLEL = 1e-13
# A product B A that is smaller than this share of ||B|| ||A|| is rounding, for an adapter stored in float32.
_PRODUCT_DUST = 1e-6
# Rounding errors of that many float32 entries of B average out to well below the bound.
_SELF_AVERAGING = 4096


class UpdateProjection:
    """Keeps retained columns and orthogonal updates of a task's layers; called after every optimizer step.

    Retained columns are copied back from the weight before the task bit for bit. With `P` = that weight on the other
    columns (0 on the retained ones), the update `D = W - W_prev` becomes `D - (<D, P> / ||P||^2) P`.
    Of the *stored* weight, in whatever dtype, `|<D, W_prev>| <= 1e-6 ||D|| ||W_prev||` holds: the leftover
    of rounding is moved to a few free entries (see `hpa_lightning.functional.rounding`). `D = 0` stays 0, and
    `P = 0` leaves the free columns as they are.

    Decision: where the grid of the dtype holds no such update near `D` (a handful of entries, or an update
    of a few ulp), the weight goes back to `W_prev`: such an update is indistinguishable from rounding.

    A layer's rows may be spread over processes. Only scalars couple them: every call sums two vectors over the
    processes, for all layers at once. A process repairs the rounding of its own rows.

    Args:
        weights_prev: weights before the task, each `(out_features, in_features)` or some rows of it, on one device.
        retained: for each, boolean `(in_features,)`, True keeps the old column; None: no column is kept.
        reduce: sums a float64 tensor over the processes that hold the other rows; None: the weights are whole.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Example:
        >>> import torch
        >>> old = torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0]])
        >>> new = old + torch.tensor([[5.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> projection = UpdateProjection([old], [torch.tensor([True, False, False])])
        >>> projection([new])
        tensor([0.1538])
        >>> new[:, 0]
        tensor([1., 2.])
        >>> abs(((new - old) * old).sum().item()) < 1e-6
        True
    """

    @torch.no_grad()
    def __init__(
        self,
        weights_prev: Sequence[Tensor],
        retained: Sequence[Tensor | None],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._before = list(weights_prev)
        self._retained = list(retained)
        self._reduce = reduce or (lambda sums: sums)
        self._is_whole = reduce is None
        groups: dict[tuple[int, torch.dtype], list[int]] = {}
        free, full = [], []
        for index, (before, mask) in enumerate(zip(self._before, self._retained, strict=True)):
            check_float(f"weights_prev[{index}]", before, ("r", "c"), like=self._before[0])
            if mask is not None:
                check_mask(f"retained[{index}]", mask, before.shape[1], before)
            groups.setdefault((before.numel(), before.dtype), []).append(index)
            free.append(square_sum(before, mask))
            full.append(square_sum(before))
        # One launch settles all weights that have equally many entries.
        self._groups = []
        for members in groups.values():
            slots = RoundingSlots.stacked([rounding_slots(self._before[i], self._retained[i]) for i in members])
            places = torch.tensor(members, device=self._before[0].device)
            self._groups.append((members, places, slots, slots.at([self._before[i] for i in members])))
        self._own_free, self._own_full = torch.stack(free), torch.stack(full)
        self._free, self._full = self._reduce(torch.stack([self._own_free, self._own_full]))

    @torch.no_grad()
    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """Correct the weights in place.

        Args:
            weights: in the order of `weights_prev`, with their shapes, dtypes and device.

        Returns:
            The shares `<D, P> / ||P||^2` of `P` that were removed, `(layers,)`.

        Raises:
            ValueError: wrong shapes, dtypes or devices.
        """
        for weight, before in zip(weights, self._before, strict=True):
            _check_pair(weight, before)
        layers = list(zip(weights, self._before, self._retained, strict=True))
        own_dot = torch.stack([update_product(*layer) for layer in layers])
        share = torch.where(self._free > 0, self._reduce(own_dot) / self._free, 0.0)
        # What is left of this process's part of the inner product; the sum over the processes vanishes.
        target = torch.zeros_like(own_dot) if self._is_whole else own_dot - share * self._own_free
        sums = [_subtract_(*layer, part) for layer, part in zip(layers, share, strict=True)]
        residual, norm_square = (torch.stack(column) for column in zip(*sums, strict=True))

        # Comparisons are written so that NaN counts as kept: a diverged run must stay visible.
        leftover = residual - target
        broken = leftover.abs() > _COSINE_BOUND * (norm_square * self._own_full).sqrt()
        to_move = torch.where(broken, leftover, 0.0)
        for members, places, slots, anchor in self._groups:
            stuck, norms = settle_rounding_(
                [weights[i] for i in members], slots, anchor, to_move[places], norm_square[places]
            )
            leftover = leftover.index_add(0, places, stuck - to_move[places])
            norm_square = norm_square.index_copy(0, places, norms)
        total, norm_square = self._reduce(torch.stack([target + leftover, norm_square]))
        lost = (total.abs() > _COSINE_BOUND * (norm_square * self._full).sqrt()) & (
            broken if self._is_whole else torch.ones_like(broken)
        )
        for (weight, before, _), back in zip(layers, lost, strict=True):
            for lines in stretches(weight):
                weight[lines] = torch.where(back, before[lines], weight[lines])
        return share.to(result_dtype(*weights))


@torch.no_grad()
def project_update_(weight: Tensor, weight_prev: Tensor, retained: Tensor | None = None) -> Tensor:
    """Correct one layer's weight in place; see `UpdateProjection`, which spares the sorting on every call.

    Returns:
        The share `<D, P> / ||P||^2` of `P` that was removed, 0-dim.

    Raises:
        ValueError: wrong shapes, dtypes or devices.
    """
    _check_pair(weight, weight_prev)
    return UpdateProjection([weight_prev], [retained])([weight])[0]


def _subtract_(weight: Tensor, weight_prev: Tensor, retained: Tensor | None, share: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract `share * P` and return `<D, W_prev>` and `||D||^2` of what is stored then."""
    residual = torch.zeros((), dtype=torch.float64, device=weight.device)
    norm_square = residual
    wide = working_dtype(weight)
    factor = share.to(wide)
    for lines in stretches(weight):
        old = weight_prev[lines].to(wide)
        new = (weight[lines].to(wide) - factor * old).to(weight.dtype)
        if retained is not None:
            new = torch.where(retained, weight_prev[lines], new)
        weight[lines] = new
        delta = new.to(wide) - old
        residual = residual + dot(delta, old)
        norm_square = norm_square + dot(delta, delta)
    return residual, norm_square


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
    has its leftover of rounding moved to a few of its entries (see `hpa_lightning.functional.rounding`). That
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
    directions, sums = [], []
    for index, (lora_b, lora_a, weight_prev) in enumerate(layers):
        check_float(f"layer {index}, weight_prev", weight_prev, ("r", "c"), like=layers[0].weight_prev)
        check_float(f"layer {index}, lora_a", lora_a, ("q", weight_prev.shape[1]), like=weight_prev)
        check_float(f"layer {index}, lora_b", lora_b, (weight_prev.shape[0], lora_a.shape[0]), like=weight_prev)
        direction, exact = quick_direction(weight_prev, lora_a), lora_b.to(torch.float64)
        directions.append(direction)
        sums.append(torch.stack([dot(exact, direction), dot(direction, direction), dot(exact, exact)]))
    own = torch.stack(sums, dim=1)
    product, square, before = own if reduce is None else reduce(own)
    share = torch.where(square > 0, product / square, 0.0)
    parallel = before * square - product.square() <= _PARALLEL * before * square
    target = torch.zeros_like(share) if reduce is None else own[0] - share * own[1]
    for index, layer in enumerate(layers):
        vanishes = parallel[index] & (square[index] > 0)
        _correct_lora_(layer, directions[index], share[index], vanishes, own[1, index], target[index])
    return share.to(result_dtype(*(tensor for layer in layers for tensor in layer)))


def _correct_lora_(
    layer: LoraTensors, direction: Tensor, share: Tensor, vanishes: Tensor, square: Tensor, target: Tensor
) -> None:
    """Write `B - share G`; `target` is what has to stay of `<B, G>` in these rows."""
    lora_b, lora_a, _ = layer
    exact = (lora_b.to(torch.float64) - share * direction).masked_fill(vanishes, 0.0)
    stored = exact.to(lora_b.dtype).to(torch.float64)
    wide_a = lora_a.to(torch.float64)
    size_a = dot(wide_a, wide_a)
    product = ((stored.T @ stored) * (wide_a @ wide_a.T)).sum().clamp_min(0.0)
    residual = dot(stored, direction) - torch.where(vanishes, 0.0, target)
    # ||W_prev|| >= ||G|| / ||A|| saves another pass over the weight.
    broken = residual.square() * size_a > _COSINE_BOUND**2 * product * square
    # With one row or one live column, say, orthogonal may mean B A = 0: rounding must not leave the opposite.
    dust = product <= _PRODUCT_DUST**2 * dot(stored, stored) * size_a
    stored = stored.masked_fill(broken & dust, 0.0)
    lora_b.copy_(stored)
    if lora_b.dtype in (torch.float16, torch.bfloat16) or lora_b.numel() < _SELF_AVERAGING:
        # An ulp of B moves the inner product in proportion to |B G|, here not to G^2.
        slots = slots_by_size(direction, (stored * direction).abs().sqrt())
        leftover = torch.where(broken & ~dust, residual, 0.0)
        settle_rounding_([lora_b], slots, None, leftover[None], dot(stored, stored)[None])


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
    _check_pair(weight, weight_prev)
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
    if not isinstance(tensor, Tensor) or tensor.dim() < 1:
        raise ValueError(f"tensor: expected a tensor of shape (..., in_features), got {describe(tensor)}.")
    check_mask("retained", retained, tensor.shape[-1], tensor)
    return tensor.masked_fill_(retained, 0)


def _check_pair(weight: Tensor, weight_prev: Tensor) -> None:
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("weight", weight, tuple(weight_prev.shape), like=weight_prev)
    check_same_dtype("weight", weight, "weight_prev", weight_prev)
