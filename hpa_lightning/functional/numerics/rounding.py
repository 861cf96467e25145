"""Keep an inner product at zero although the weights are rounded to their storage dtype.

An update `D` is projected so that `<D, W_prev> = 0`, and then `W = W_prev + D` is rounded. The rounding error
of an entry is up to half an ulp *of W*, so the inner product comes back at about `u ||W_prev||^2 / sqrt(N)`
(`u` = 6e-8 in float32, 4e-3 in bfloat16), which exceeds `1e-6 ||D|| ||W_prev||` as long as D is small beside
W. Projecting again cannot help: the correction, spread over all entries, is below half an ulp of each and is
rounded away.

The leftover is therefore put on a few entries. Moving entry e by one ulp moves the inner product by
`ulp(W_e) |W_prev,e|`: quanta of very different size, like a set of weights for a balance. First the largest
entries share the leftover, in shrinking groups, so that each moves by a few ulp only; then single entries,
each about half the size of the one before, take what is left, and about a quarter of it stays each time.
No entry moves by more than `||D||`, so that `D = 0` stays 0. The leftover is measured in float64 from the
stored values throughout, and everything stays on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpa_lightning.functional.numerics import triton_kernels
from hpa_lightning.functional.numerics.checks import check_float, check_mask

# Single entries at the end of the ladder and the ratio of their sizes. A coarser ladder would need moves
# larger than the update itself for half-precision weights; a finer one gains nothing.
_SINGLE_SLOTS = 24
_RATIO = 2.0


class RoundingSlots(NamedTuple):
    """Entries that take the leftover of rounding, of `g` weights.

    A weight's slots are `n` coarse ones, the largest entries, and after them up to `_SINGLE_SLOTS` single ones. Where
    the weights have different numbers of slots, the free places repeat the first slot; see `padding`.

    Attributes:
        rows: `(g, k)` int64.
        columns: `(g, k)` int64.
        direction: `(g, k)` float64, `W_prev` at these entries; 0 where the entry must not move.
        gains: per coarse stage of m entries, `(g, m)`: `direction / ||direction||^2` of them; stages come in the order
            in which they take the leftover.
        coarse: n; the slots after it take the leftover one by one.
        padding: `(g, k)` boolean, True for the places that repeat the first slot; None: there is none.
    """

    rows: Tensor
    columns: Tensor
    direction: Tensor
    gains: tuple[Tensor, ...]
    coarse: int
    padding: Tensor | None = None

    @classmethod
    def stacked(cls, slots: Sequence[RoundingSlots]) -> RoundingSlots:
        """Join the slots of several weights along the first dimension."""
        coarse = max(one.coarse for one in slots)
        singles = max(one.rows.shape[1] - one.coarse for one in slots)
        stages = max(len(one.gains) for one in slots)
        widths = [max((one.gains[i].shape[1] for one in slots if i < len(one.gains)), default=0) for i in range(stages)]

        def spread(one: RoundingSlots, values: Tensor, fill: Tensor) -> Tensor:
            free = [coarse - one.coarse, singles - (values.shape[1] - one.coarse)]
            before, after = (fill.expand(len(values), width) for width in free)
            return torch.cat([values[:, : one.coarse], before, values[:, one.coarse :], after], dim=1)

        def gain(one: RoundingSlots, stage: int) -> Tensor:
            own = one.gains[stage] if stage < len(one.gains) else one.direction[:, :0]
            return torch.nn.functional.pad(own, (0, widths[stage] - own.shape[1]))

        equal = all(one.coarse == coarse and one.rows.shape[1] == coarse + singles for one in slots)
        padding = [
            spread(one, torch.zeros_like(one.rows, dtype=torch.bool), one.rows.new_ones(1, 1, dtype=torch.bool))
            for one in slots
        ]
        return cls(
            torch.cat([spread(one, one.rows, one.rows[:, :1]) for one in slots]),
            torch.cat([spread(one, one.columns, one.columns[:, :1]) for one in slots]),
            torch.cat([spread(one, one.direction, torch.zeros_like(one.direction[:, :1])) for one in slots]),
            tuple(torch.cat([gain(one, stage) for one in slots]) for stage in range(stages)),
            coarse,
            None if equal else torch.cat(padding),
        )

    def gather(self, weights: Sequence[Tensor]) -> Tensor:
        """The stored values of the g weights at the slots, `(g, k)` float64."""
        values = [weight[self.rows[i], self.columns[i]] for i, weight in enumerate(weights)]
        return torch.stack(values).to(torch.float64)

    def scatter_(self, weights: Sequence[Tensor], values: Tensor) -> None:
        """Write values, `(g, k)`, to the slots of the g weights."""
        for i, (weight, one) in enumerate(zip(weights, values.to(weights[0].dtype), strict=True)):
            weight[self.rows[i], self.columns[i]] = one


@torch.no_grad()
def rounding_slots(weight_prev: Tensor, retained: Tensor | None = None) -> RoundingSlots:
    """Choose the entries that take the leftover of rounding in `project_update_`.

    Sorts the weight: once per task, see `UpdateProjection`. Causes no host synchronisation.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`.
        retained: boolean `(in_features,)`, True keeps the old column; None: no column is kept.

    Raises:
        ValueError: wrong shapes or dtypes.

    Example:
        >>> import torch
        >>> slots = rounding_slots(torch.tensor([[1.0, 8.0], [2.0, 4.0]]), torch.tensor([False, True]))
        >>> slots.direction.tolist()        # the kept column's entries are never used
        [[2.0, 1.0, 0.0, 0.0]]
    """
    check_float("weight_prev", weight_prev, ("r", "c"))
    size = weight_prev.abs()
    if retained is not None:
        check_mask("retained", retained, weight_prev.shape[1], weight_prev)
        size = size.masked_fill(retained, 0.0)
    return slots_by_size(weight_prev[None], size[None])


def slots_by_size(direction: Tensor, size: Tensor, candidates: int | None = None) -> RoundingSlots:
    """Choose slots of g weights for their directions: the largest entries by `size`, then a ladder of smaller ones.

    Args:
        direction: `(g, r, c)`.
        size: `(g, r, c)`, proportional to the root of the step that an ulp makes in the inner product; entries of size
            0 are not used.
        candidates: sort the entries of about as few rows as hold so many, those with the largest entries; the largest
            entries stay the same. None: sort all entries.
    """
    _, rows, columns = size.shape
    coarse = max(1, math.isqrt(rows * columns) // 8)
    taken = rows if candidates is None else min(rows, max(coarse, -(-candidates // columns)))
    # The n largest entries lie in the n rows with the largest entries.
    places = torch.sort(size.amax(2), dim=1, descending=True, stable=True).indices[:, :taken] if taken < rows else None
    if places is not None:
        size = size.gather(1, places[:, :, None].expand(-1, -1, columns))
    size = size.flatten(1)
    total = size.shape[1]
    singles = min(_SINGLE_SLOTS, total - coarse)
    values, order = torch.sort(size, dim=1, descending=True, stable=True)

    # Rank of the first entry not above largest / ratio^i; kept distinct, and inside the non-zero entries.
    step = torch.arange(singles, device=values.device)
    targets = values[:, :1].to(torch.float64) * torch.exp2(-math.log2(_RATIO) * (step + 1.0).to(torch.float64))
    rank = total - torch.searchsorted(values.flip(1).to(torch.float64), targets, right=True)
    if singles:
        rank = (rank - step).cummax(1).values + step
        last = (values > 0).sum(1, keepdim=True) - singles + step
        rank = torch.minimum(rank, last).maximum(coarse + step)
    index = torch.cat([order[:, :coarse], order.gather(1, rank)], dim=1)

    row, column = index // columns, index % columns
    row = row if places is None else places.gather(1, row)
    chosen = direction.flatten(1).gather(1, row * columns + column).to(torch.float64)
    chosen = chosen.masked_fill(size.gather(1, index) == 0, 0.0)
    gains = []
    group = coarse
    while group >= 1:
        square = chosen[:, :group].square().sum(1, keepdim=True)
        gains.append(torch.where(square > 0, chosen[:, :group] / square, 0.0))
        group //= 8
    return RoundingSlots(row, column, chosen, tuple(gains), coarse)


@torch.no_grad()
def cancel_residual(
    values: Tensor,
    dtype: torch.dtype,
    slots: RoundingSlots,
    anchor: Tensor | None,
    residual: Tensor,
    norm_square: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move the slots of stored tensors until the inner products of their updates with the directions vanish.

    No host synchronisation. An update of norm 0 stays exactly 0.

    Args:
        values: `(g, k)` float64, what the g weights hold at the slots.
        dtype: of the weights.
        slots: entries to move and the directions there.
        anchor: `(g, k)` float64, where the updates count from at the slots; None: from 0.
        residual: `(g,)` float64, `<weight - anchor, direction>` of the stored values.
        norm_square: `(g,)` float64, `||weight - anchor||^2`.

    Returns:
        `(values, residual, norm_square)` after the moves; the values are exact in `dtype`.
    """
    limit = norm_square.sqrt()
    low, high = -limit[:, None], limit[:, None]
    coarse = values[:, : slots.coarse]
    for gain in slots.gains:
        old = coarse[:, : gain.shape[1]]
        new = (old - (residual[:, None] * gain).clamp(low, high)).to(dtype).to(torch.float64)
        residual = residual + ((new - old) * slots.direction[:, : gain.shape[1]]).sum(1)
        coarse = torch.cat([new, coarse[:, gain.shape[1] :]], dim=1)
    if dtype != torch.float64 and triton_kernels.fits(values.new_empty(0, dtype=dtype)):
        fine, residual = triton_kernels.cancel_residual_one_by_one(
            values, dtype, slots.direction, slots.coarse, residual, limit
        )
    else:
        fine, residual = _cancel_residual_one_by_one(values, dtype, slots, residual, limit)
    current = torch.cat([coarse, fine], dim=1)
    start = 0.0 if anchor is None else anchor
    change = (current - start).square() - (values - start).square()
    if slots.padding is not None:
        current = torch.where(slots.padding, current[:, :1], current)
        change = change.masked_fill(slots.padding, 0.0)
    return current, residual, (norm_square + change.sum(1)).clamp_min(0.0)


def _cancel_residual_one_by_one(
    values: Tensor, dtype: torch.dtype, slots: RoundingSlots, residual: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    directions = slots.direction[:, slots.coarse :]
    gains = torch.where(directions != 0, 1.0 / directions, 0.0)
    settled = [values[:, :0]]
    for old, direction, gain in zip(
        values[:, slots.coarse :].unbind(1), directions.unbind(1), gains.unbind(1), strict=True
    ):
        new = (old - (residual * gain).clamp(-limit, limit)).to(dtype).to(torch.float64)
        residual = torch.addcmul(residual, new - old, direction)
        settled.append(new[:, None])
    return torch.cat(settled, dim=1), residual
