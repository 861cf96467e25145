"""Projections for use inside the optimizer step: retained columns stay, updates stay orthogonal.

Everything here is in place, reads shapes and dtypes only and causes no host synchronisation on CUDA.

Inner products are those of `hpa_lightning.functional.numerics.inner_products`; their error is far below the bound
of 1e-6.

Source: HPA (arXiv 2511.20158), step 3, applied to every step. Decision: the projection acts on the weights
after the optimizer's step, not on the gradients, since momentum, adaptive scaling and decoupled weight decay
all leave the subspace in which a gradient was put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpa_lightning.functional.numerics import triton_kernels
from hpa_lightning.functional.numerics.checks import (
    blocks,
    check_float,
    check_mask,
    check_same_dtype,
    describe,
    is_dense,
    result_dtype,
)
from hpa_lightning.functional.numerics.inner_products import (
    dot,
    row_chunks,
    square_sum,
    update_product,
    working_dtype,
)
from hpa_lightning.functional.numerics.matrix_products import quick_direction
from hpa_lightning.functional.numerics.rounding import RoundingSlots, cancel_residual, rounding_slots, slots_by_size

# |<D, W_prev>| / (||D|| ||W_prev||) that `project_update_` lets stand; the promise is 1e-6.
_COSINE_BOUND = 0.9e-6
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


class UpdateProjection:
    """Keeps retained columns and orthogonal updates of a task's layers; called after every optimizer step.

    Retained columns are copied back from the weight before the task bit for bit. With `P` = that weight on the other
    columns (0 on the retained ones), the update `D = W - W_prev` becomes `D - (<D, P> / ||P||^2) P`.
    Of the *stored* weight, in whatever dtype, `|<D, W_prev>| <= 1e-6 ||D|| ||W_prev||` holds: the leftover
    of rounding is moved to a few free entries (see `hpa_lightning.functional.numerics.rounding`). `D = 0` stays 0, and
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
        free, full = [], []
        for index, (before, mask) in enumerate(zip(self._before, self._retained, strict=True)):
            check_float(f"weights_prev[{index}]", before, ("r", "c"), like=self._before[0])
            if mask is not None:
                check_mask(f"retained[{index}]", mask, before.shape[1], before)
            free.append(square_sum(before, mask))
            full.append(square_sum(before))
        # One launch settles all weights of a dtype.
        dtypes: dict[torch.dtype, list[int]] = {}
        for index, before in enumerate(self._before):
            dtypes.setdefault(before.dtype, []).append(index)
        self._groups = []
        for members in dtypes.values():
            slots = RoundingSlots.stacked([rounding_slots(self._before[i], self._retained[i]) for i in members])
            self._groups.append((members, slots, slots.gather([self._before[i] for i in members])))
        self._local_free, self._local_full = torch.stack(free), torch.stack(full)
        self._free, self._full = self._reduce(torch.stack([self._local_free, self._local_full]))

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
        local_dot = torch.stack([update_product(*layer) for layer in layers])
        share = torch.where(self._free > 0, self._reduce(local_dot) / self._free, 0.0)
        # What is left of this process's part of the inner product; the sum over the processes vanishes.
        target = torch.zeros_like(local_dot) if self._is_whole else local_dot - share * self._local_free
        sums = [_subtract_(*layer, part) for layer, part in zip(layers, share, strict=True)]
        residual, norm_square = (torch.stack(column) for column in zip(*sums, strict=True))

        # Comparisons are written so that NaN counts as kept: a diverged run must stay visible.
        leftover = residual - target
        broken = leftover.abs() > _COSINE_BOUND * (norm_square * self._local_full).sqrt()
        to_move = torch.where(broken, leftover, 0.0)
        settled = list(torch.stack([leftover, norm_square, to_move]).unbind(1))
        for members, slots, anchor in self._groups:
            chosen = [weights[i] for i in members]
            rest, norms, move = torch.stack([settled[i] for i in members], dim=1)
            values, stuck, norms = cancel_residual(slots.gather(chosen), chosen[0].dtype, slots, anchor, move, norms)
            slots.scatter_(chosen, values)
            for i, one in zip(members, torch.stack([rest + stuck - move, norms]).unbind(1), strict=True):
                settled[i] = one
        leftover, norm_square = torch.stack([one[:2] for one in settled], dim=1)
        total, norm_square = self._reduce(torch.stack([target + leftover, norm_square]))
        lost = (total.abs() > _COSINE_BOUND * (norm_square * self._full).sqrt()) & (
            broken if self._is_whole else torch.ones_like(broken)
        )
        for (weight, before, _), back in zip(layers, lost, strict=True):
            if triton_kernels.fits(weight, before):
                triton_kernels.copy_where_(weight, before, back)
                continue
            for lines in row_chunks(weight):
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
    wide = working_dtype(weight)
    if wide == torch.float32 and triton_kernels.fits(weight, weight_prev):
        return triton_kernels.subtract_(weight, weight_prev, retained, share)
    residual = torch.zeros((), dtype=torch.float64, device=weight.device)
    norm_square = residual
    factor = share.to(wide)
    for lines in row_chunks(weight):
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
        broken = residual.square() * size_a > _COSINE_BOUND**2 * product * local_square
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
    if not is_dense(tensor) or tensor.dim() < 1:
        raise ValueError(f"tensor: expected a tensor of shape (..., in_features), got {describe(tensor)}.")
    check_mask("retained", retained, tensor.shape[-1], tensor)
    return tensor.masked_fill_(retained, 0)


def _check_pair(weight: Tensor, weight_prev: Tensor) -> None:
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("weight", weight, tuple(weight_prev.shape), like=weight_prev)
    check_same_dtype("weight", weight, "weight_prev", weight_prev)
