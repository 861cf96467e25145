"""Projection inside the optimizer step: retained columns stay, updates of whole weights stay orthogonal.

Everything here is in place, reads shapes and dtypes only and causes no host synchronisation on CUDA.

Inner products are those of `hpa_lightning.functional.numerics.inner_products`; their error is far below the bound
of 1e-6.

Source: HPA (arXiv 2511.20158), step 3, applied to every step. Decision: the projection acts on the weights
after the optimizer's step, not on the gradients, since momentum, adaptive scaling and decoupled weight decay
all leave the subspace in which a gradient was put.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpa_lightning.functional.numerics import triton_kernels
from hpa_lightning.functional.numerics.checks import (
    check_float,
    check_mask,
    result_dtype,
)
from hpa_lightning.functional.numerics.inner_products import (
    dot,
    row_chunks,
    square_sum,
    update_product,
    working_dtype,
)
from hpa_lightning.functional.numerics.rounding import RoundingSlots, cancel_residual, rounding_slots
from hpa_lightning.functional.retained_columns import check_pair

# |<D, W_prev>| / (||D|| ||W_prev||) that `project_update_` lets stand; the promise is 1e-6.
COSINE_BOUND = 0.9e-6


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
            check_pair(weight, before)
        layers = list(zip(weights, self._before, self._retained, strict=True))
        local_dot = torch.stack([update_product(*layer) for layer in layers])
        share = torch.where(self._free > 0, self._reduce(local_dot) / self._free, 0.0)
        # What is left of this process's part of the inner product; the sum over the processes vanishes.
        target = torch.zeros_like(local_dot) if self._is_whole else local_dot - share * self._local_free
        sums = [_subtract_(*layer, part) for layer, part in zip(layers, share, strict=True)]
        residual, norm_square = (torch.stack(column) for column in zip(*sums, strict=True))

        # Comparisons are written so that NaN counts as kept: a diverged run must stay visible.
        leftover = residual - target
        broken = leftover.abs() > COSINE_BOUND * (norm_square * self._local_full).sqrt()
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
        lost = (total.abs() > COSINE_BOUND * (norm_square * self._full).sqrt()) & (
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
    check_pair(weight, weight_prev)
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
