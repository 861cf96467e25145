"""Safe Delta: the part of an update that costs safety least, within a budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpa_lightning.functional.brain_surgeon import Sweep, check_block_size, check_edit, edit_in_blocks
from hpa_lightning.functional.numerics.checks import check_number, check_result


@torch.no_grad()
def safe_delta(
    weight_prev: Tensor,
    weight_new: Tensor,
    factor: Tensor,
    budget: float = 0.1,
    protected_percent: float = 15.0,
    block_size: int = 2048,
    columns_at_once: int = 1,
    costs_after_compensation: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Accept tuned entries of a weight while their cost to the safety output stays within a budget: Safe Delta.

    Within a block of columns, with `d_j = U_jj`, the entries are ranked by ascending `1 / d_j^2`, the sensitivity of
    their column; the most sensitive `protected_percent` of them never change; of the others the first ones take the
    tuned value, as long as the sum of their costs `D_ij^2 / d_j^2`, `D = W_new - W_prev`, is at most

        mean_j(1 / d_j^2) * (budget / 2) * (out_features / 4096).

    Every other entry keeps its earlier value plus the compensation by which the safety output of the weight before
    the task is held (:func:`compensate`).

    Decision: costs are those of the update `D` as trained, also in blocks that compensation from earlier ones has
    reached, and compensation reaches every next column. The authors' code counts costs from what compensation has left
    (`costs_after_compensation=True`) and lets four columns move at a time (`columns_at_once=4`).
    Decision: entries of one column, which rank alike, go in the order of the rows. Decision: the factor 1/2 (4096 /
    2048 columns) stays for a block of any width. Decision: an infinite budget switches the method off and accepts
    every entry, the protected ones too.

    Args:
        weight_prev: weight of the safe model, `(out_features, in_features)`, any floating dtype.
        weight_new: tuned weight, same shape, any floating dtype.
        factor: `U` of the Hessian of the safety inputs, `(in_features, in_features)`, from :func:`surgeon_factor`.
        budget: the paper's s, `>= 0`; 0 returns `weight_prev` bit for bit, infinity `weight_new` (in the dtype of
            `weight_prev`).
        protected_percent: percent of a block's entries that always keep the earlier value; their number is rounded
            down.
        block_size: columns that share one budget.
        columns_at_once: see :func:`compensate`.
        costs_after_compensation: count a block's costs from its weight as compensation from earlier blocks has left
            it, instead of `weight_prev`.

    Returns:
        the weight `(out_features, in_features)` in the dtype of `weight_prev`, and the boolean mask of the same shape
        of the entries that took the tuned value.

    Raises:
        ValueError: wrong shapes or devices, non-finite values, or a setting out of its range.

    Source: Lu et al., Safe Delta (ICML 2025, arXiv 2505.12038).

    Example:
        >>> import torch
        >>> from hpa_lightning.functional import surgeon_factor
        >>> old, new = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])
        >>> factor = surgeon_factor(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))       # costs 1 and 3, mean 2
        >>> safe_delta(old, new, factor, budget=5000.0, protected_percent=0.0)    # at most 2 * 5000/2 * 1/4096 = 1.2
        (tensor([[1., 0.]]), tensor([[ True, False]]))
    """
    check_edit(weight_prev, weight_new, factor)
    if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not budget >= 0:
        raise ValueError(f"budget: expected a number >= 0 (infinity accepts the whole update), got {budget!r}.")
    check_number("protected_percent", protected_percent, 0.0, 100.0)
    check_block_size(block_size)
    if math.isinf(budget):
        edited = check_result("edited weight", weight_new.to(weight_prev.dtype, copy=True))
        return edited, torch.ones_like(weight_prev, dtype=torch.bool)
    rows, columns = weight_prev.shape

    def accept(block: slice, before: Tensor) -> Tensor:
        sensitivity = factor.diagonal()[block].to(torch.float64).square().reciprocal()
        order = torch.argsort(sensitivity, stable=True)
        delta = weight_new[:, block].to(torch.float64) - before.to(torch.float64)
        costs = (delta.square_() * sensitivity)[:, order].T.flatten()
        limit = sensitivity.mean() * (budget / 2.0) * (rows / 4096.0)
        # On the CPU: a float cumsum on CUDA is not deterministic. Costs are not negative, so the set is a prefix.
        within = int((costs.cpu().cumsum(0) <= limit.cpu()).sum())
        count = min(within, len(costs) - math.floor(protected_percent * len(costs) / 100.0))
        rank = torch.argsort(order) * rows
        return rank + torch.arange(rows, device=rank.device).unsqueeze(1) < count

    sweep = Sweep(weight_prev, weight_new, factor, columns_at_once)
    original = None if costs_after_compensation else weight_prev
    accepted = edit_in_blocks(sweep, columns, block_size, accept, original)
    return check_result("edited weight", sweep.result().to(weight_prev.dtype)), accepted
