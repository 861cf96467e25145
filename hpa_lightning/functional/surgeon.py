r"""Optimal-brain-surgeon edits of a linear layer: factor, compensation, Safe Delta, Model Tailor.

A layer's output error on its calibration inputs after the weights moved by `Delta` `(r, c)` is, up to a constant,
`tr(Delta H Delta^T)`. Columns are treated from left to right. With `U` the upper Cholesky factor of `H^-1`
(`U^T U = H^-1`), `U[j, j:]` spans the first row of the inverse of `H[j:, j:]`, so that moving the weight `w_j` to `q`
and the later ones by what hurts least is

    e_j = (w_j - q) / U_jj,      w_k <- w_k - e_j U_jk   for k >= j,

which adds exactly `e_j^2` to `Delta H Delta^T`: after all columns `Delta = -E U` and the error is `||E||_F^2`.

Arithmetic is float64, with one cast when the result is written.

Source: Hassibi & Stork, Optimal Brain Surgeon (1993); Frantar & Alistarh, SparseGPT (ICML 2023), for the order of
columns and the lazy updates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpa_lightning.functional._checks import check_finite, check_float, check_number, describe

# Columns that are finished before what they change reaches the columns behind them.
_LAZY_COLUMNS = 128


@torch.no_grad()
def surgeon_factor(hessian: Tensor) -> Tensor:
    r"""Compute `U`, upper triangular with a positive diagonal, such that `U^T U = H^-1`.

    With the order of the columns reversed, `H = L L^T` is an upper-times-lower factorisation in the old order, and
    `U` is `L^-1` reversed again: one Cholesky factorisation and one triangular inverse, never a general inverse.

    `U_jj^2` is the first diagonal entry of `H[j:, j:]^-1`, the inverse within the columns from j on; `[H^-1]_jj` is
    another number for every column but the first.

    Args:
        hessian: damped `H`, `(c, c)`, symmetric and positive definite (`HessianAccumulator.hessian()`), any
            floating dtype.

    Returns:
        `(c, c)`, float64, on the device of `hessian`.

    Raises:
        ValueError: not a finite square floating-point matrix, or not positive definite.

    Example:
        >>> import torch
        >>> surgeon_factor(torch.tensor([[4.0, 0.0], [0.0, 16.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    check_float("hessian", hessian, ("c", "c"))
    if hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"hessian: expected a square matrix, got {describe(hessian)}.")
    check_finite("hessian", hessian)
    lower, info = torch.linalg.cholesky_ex(hessian.to(torch.float64).flip(0, 1))
    if int(info) != 0:
        raise ValueError(
            f"hessian: expected a positive definite matrix, got a singular or indefinite {describe(hessian)}; use "
            "more damping or more calibration tokens."
        )
    unit = torch.eye(len(lower), dtype=torch.float64, device=lower.device)
    return torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1).contiguous()


@torch.no_grad()
def compensate(weight: Tensor, target: Tensor, moved: Tensor, factor: Tensor) -> Tensor:
    """Move some entries of a weight to given values and let the columns behind them make up for it.

    An entry that is moved ends at its target exactly, whatever compensation reached it before; any other entry ends
    at its own value plus the compensation from the columns to its left.

    Args:
        weight: the weight whose layer output is to be kept, `(out_features, in_features)`, any floating dtype.
        target: the values to move to, same shape, any floating dtype; used where `moved` is True.
        moved: boolean, same shape.
        factor: `U`, `(in_features, in_features)`, from :func:`surgeon_factor`.

    Returns:
        `(out_features, in_features)`, float64.

    Raises:
        ValueError: wrong shapes or devices, a mask that is not boolean, or non-finite values.

    Example:
        >>> import torch
        >>> factor = surgeon_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> weight, target = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2)
        >>> compensate(weight, target, torch.tensor([[True, False]]), factor)  # the second column takes over half
        tensor([[0.0000, 1.5000]], dtype=torch.float64)
    """
    _check(weight, target, factor, names=("weight", "target"))
    if not isinstance(moved, Tensor) or moved.dtype != torch.bool or moved.shape != weight.shape:
        raise ValueError(f"moved: expected a boolean tensor of shape {tuple(weight.shape)}, got {describe(moved)}.")
    if moved.device != weight.device:
        raise ValueError(f"moved: expected a tensor on {weight.device} like weight, got {describe(moved)}.")
    # Transposed, so that a column of the weight is contiguous.
    result = weight.to(torch.float64).T.clone(memory_format=torch.contiguous_format)
    goal, move = target.T.contiguous(), moved.T.contiguous()
    upper = factor.to(torch.float64)
    columns = len(result)
    for start in range(0, columns, _LAZY_COLUMNS):
        stop = min(start + _LAZY_COLUMNS, columns)
        goals = goal[start:stop].to(torch.float64)
        errors = torch.empty_like(goals)
        for j in range(start, stop):
            error = torch.where(move[j], (result[j] - goals[j - start]) / upper[j, j], 0.0)
            result[j + 1 : stop].addr_(upper[j, j + 1 : stop], error, alpha=-1.0)
            errors[j - start] = error
        result[start:stop] = torch.where(move[start:stop], goals, result[start:stop])
        result[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
    return result.T.contiguous()


@torch.no_grad()
def safe_delta(
    weight_prev: Tensor,
    weight_new: Tensor,
    factor: Tensor,
    budget: float = 0.1,
    protected_percent: float = 15.0,
    block_size: int = 2048,
) -> tuple[Tensor, Tensor]:
    r"""Accept tuned entries of a weight while their cost to the safety output stays within a budget: Safe Delta.

    Within a block of columns, with `d_j = U_jj`, the entries are ranked by ascending `1 / d_j^2`, the sensitivity of
    their column; the most sensitive `protected_percent` of them never change; of the others the first ones take the
    tuned value, as long as the sum of their costs `D_ij^2 / d_j^2`, `D = W_new - W_prev`, is at most

        mean_j(1 / d_j^2) * (budget / 2) * (out_features / 4096).

    Every other entry keeps its earlier value plus the compensation by which the safety output of the weight before
    the task is held (:func:`compensate`).

    Decision: costs are those of the update `D` as trained, also in blocks that compensation from earlier ones has
    reached. Decision: entries of one column, which rank alike, go in the order of the rows. Decision: the factor 1/2
    (4096 / 2048 columns) stays for a block of any width. Decision: an infinite budget switches the method off and
    accepts every entry, the protected ones too.

    Args:
        weight_prev: weight of the safe model, `(out_features, in_features)`, any floating dtype.
        weight_new: tuned weight, same shape, any floating dtype.
        factor: `U` of the Hessian of the safety inputs, `(in_features, in_features)`, from :func:`surgeon_factor`.
        budget: the paper's s, `>= 0`; 0 returns `weight_prev` bit for bit, infinity `weight_new` (in the dtype of
            `weight_prev`).
        protected_percent: percent of a block's entries that always keep the earlier value; their number is rounded
            down.
        block_size: columns that share one budget.

    Returns:
        the weight `(out_features, in_features)` in the dtype of `weight_prev`, and the boolean mask of the same shape
        of the entries that took the tuned value.

    Raises:
        ValueError: wrong shapes or devices, non-finite values, or a setting out of its range.

    Source: Lu et al., Safe Delta (ICML 2025, arXiv 2505.12038).

    Example:
        >>> import torch
        >>> old, new = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])
        >>> factor = surgeon_factor(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))       # costs 1 and 3, mean 2
        >>> safe_delta(old, new, factor, budget=5000.0, protected_percent=0.0)    # at most 2 * 5000/2 * 1/4096 = 1.2
        (tensor([[1., 0.]]), tensor([[ True, False]]))
    """
    _check(weight_prev, weight_new, factor)
    if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not budget >= 0:
        raise ValueError(f"budget: expected a number >= 0 (infinity accepts the whole update), got {budget!r}.")
    check_number("protected_percent", protected_percent, 0.0, 100.0)
    _check_block_size(block_size)
    if math.isinf(budget):
        return weight_new.to(weight_prev.dtype, copy=True), torch.ones_like(weight_prev, dtype=torch.bool)
    rows, columns = weight_prev.shape
    accepted = torch.zeros_like(weight_prev, dtype=torch.bool)
    for start in range(0, columns, block_size):
        block = slice(start, min(start + block_size, columns))
        sensitivity = factor.diagonal()[block].to(torch.float64).square().reciprocal()
        order = torch.argsort(sensitivity, stable=True)
        delta = weight_new[:, block].to(torch.float64) - weight_prev[:, block].to(torch.float64)
        costs = (delta.square_() * sensitivity)[:, order].T.flatten()
        limit = sensitivity.mean() * (budget / 2.0) * (rows / 4096.0)
        # On the CPU: a float cumsum on CUDA is not deterministic. Costs are not negative, so the set is a prefix.
        within = int((costs.cpu().cumsum(0) <= limit.cpu()).sum())
        count = min(within, len(costs) - math.floor(protected_percent * len(costs) / 100.0))
        rank = torch.argsort(order) * rows
        accepted[:, block] = rank + torch.arange(rows, device=rank.device).unsqueeze(1) < count
    return compensate(weight_prev, weight_new, accepted, factor).to(weight_prev.dtype), accepted


@torch.no_grad()
def model_tailor(
    weight_prev: Tensor,
    weight_new: Tensor,
    factor: Tensor,
    keep_percent: float = 10.0,
    mix: float = 0.5,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    r"""Keep the tuned entries that matter most to the task and return the rest, with compensation: Model Tailor.

    Within a block of columns, with `d_j = U_jj` and z-scores over each row,

        score_ij = mix * z(|D_ij|) + (1 - mix) * z(W_new,ij^2 / d_j^2),      D = W_new - W_prev.

    The `keep_percent` of a block's entries with the largest score stay tuned; the others return to `weight_prev`.
    Each return is made up for by the entries to its right that stay, so that the task output of the tuned weight is
    held (:func:`compensate`): returned entries end at `weight_prev` exactly, kept ones at `weight_new` plus the
    compensation.

    Decision: the sign of the compensation is the one that lowers the output error. Decision: scores are those of the
    tuned weight as trained, also in blocks that compensation from earlier ones has reached. Decision: the count in a
    block is `floor(keep_percent * entries / 100 + 0.5)`, ties go to the lower row and then to the lower column, and
    a row without spread has z = 0.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: tuned weight, same shape, any floating dtype.
        factor: `U` of the Hessian of the task inputs, `(in_features, in_features)`, from :func:`surgeon_factor`.
        keep_percent: percent of the entries that stay tuned; 0 returns `weight_prev` bit for bit, 100 `weight_new`
            (in the dtype of `weight_prev`).
        mix: share of the change's size in the score, in [0, 1]; the rest is the saliency's.
        block_size: columns within which scores are normalised and compared.

    Returns:
        the weight `(out_features, in_features)` in the dtype of `weight_prev`, and the boolean mask of the same shape
        of the entries that stayed tuned.

    Raises:
        ValueError: wrong shapes or devices, non-finite values, or a setting out of its range.

    Source: Zhu et al., Model Tailor (ICML 2024, arXiv 2402.12048).

    Example:
        >>> import torch
        >>> old, new = torch.zeros(1, 4), torch.tensor([[1.0, 4.0, 2.0, 3.0]])
        >>> model_tailor(old, new, surgeon_factor(torch.eye(4)), keep_percent=50.0)
        (tensor([[0., 4., 0., 3.]]), tensor([[False,  True, False,  True]]))
    """
    _check(weight_prev, weight_new, factor)
    check_number("keep_percent", keep_percent, 0.0, 100.0)
    check_number("mix", mix, 0.0, 1.0)
    _check_block_size(block_size)
    columns = weight_prev.shape[1]
    kept = torch.zeros_like(weight_prev, dtype=torch.bool)
    for start in range(0, columns, block_size):
        block = slice(start, min(start + block_size, columns))
        new = weight_new[:, block].to(torch.float64)
        change = (new - weight_prev[:, block].to(torch.float64)).abs_()
        saliency = (new / factor.diagonal()[block].to(torch.float64)).square_()
        score = mix * _z_scores(change) + (1.0 - mix) * _z_scores(saliency)
        count = math.floor(keep_percent * score.numel() / 100.0 + 0.5)
        chosen = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        chosen[torch.argsort(score.flatten(), descending=True, stable=True)[:count]] = True
        kept[:, block] = chosen.view_as(score)
    return compensate(weight_new, weight_prev, ~kept, factor).to(weight_prev.dtype), kept


def _z_scores(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt_()
    # What rounding leaves of a row of equal values is no spread.
    flat = spread <= 1e-12 * values.abs().amax(dim=1, keepdim=True)
    return torch.where(flat, 0.0, centred / spread)


def _check(
    weight: Tensor, other: Tensor, factor: Tensor, names: tuple[str, str] = ("weight_prev", "weight_new")
) -> None:
    check_float(names[0], weight, ("r", "c"))
    check_float(names[1], other, tuple(weight.shape), like=weight)
    check_float("factor", factor, (weight.shape[1], weight.shape[1]), like=weight)
    for name, tensor in ((names[0], weight), (names[1], other), ("factor", factor)):
        check_finite(name, tensor)


def _check_block_size(block_size: int) -> None:
    if not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1:
        raise ValueError(f"block_size: expected an integer >= 1, got {block_size!r}.")
