r"""Fusing by regression without `c x c` matrices: the Hessians as a low-rank factor plus a diagonal.

A sketch knows a factor `B` of its inputs and, exactly, `diag(X^T X)`; what `B` lacks of each column is its remainder
`d = diag(X^T X) - diag(B^T B)`. With `H ~ B^T B + diag(d)` for the task's inputs and for those that are kept, damped as
the whole Hessians are, `D H_t (H_t + K)^-1` takes products with the factors and one system of as many unknowns as both
sketches have rows (Woodbury): `O(c m^2 + m^3)` once, `4 r c m` for `r` rows, where the whole form takes `c^3 / 3` and
`4 r c^2`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import check_float, check_number, describe
from hpa_lightning.functional.sketch import InputSketch


def kept_sketch(
    safety: InputSketch, earlier: InputSketch | None, safety_weight: float, memory_weight: float, rank: int
) -> InputSketch:
    """Return the sketch of `safety_weight H_s + memory_weight sum_i H_i`, what an update is kept away from.

    Args:
        safety: of the safety inputs, at most `rank` rows; it stays as it is.
        earlier: of the inputs of earlier tasks, likewise; None: there are none.
        safety_weight, memory_weight: their weights, at least 0.
        rank: of both; the result holds twice as many rows, so that nothing is lost here.

    Raises:
        ValueError: other columns, or a negative weight.
    """
    kept = safety.scaled(safety_weight, rank=2 * rank)
    if earlier is not None:
        kept.merge(earlier, memory_weight)
    return kept


@torch.no_grad()
def remembered_sketch(earlier: InputSketch | None, task: InputSketch, rank: int) -> InputSketch:
    """Return the sketch of `sum_i H_i` over the earlier tasks and this one, its rows in bfloat16.

    Args:
        earlier: of the earlier tasks' inputs; None: there are none. It stays as it is, as `task` does.
        task: of the task's inputs, on the same device.
        rank: of the result; all columns where there are fewer.

    Raises:
        ValueError: other columns.
    """
    total = InputSketch(task.columns, min(rank, task.columns))
    for sketch in (earlier, task):
        if sketch is not None:
            total.merge(sketch)
    total.round_()
    return total


@torch.no_grad()
def sketched_regression_map(task: InputSketch, kept: InputSketch, damping: float = 0.01) -> Callable[[Tensor], Tensor]:
    """Return the linear map of an update ``D -> D H_t (H_t + K)^-1`` from sketches of the Hessians.

    Where the sketches are exact (no more inputs, or columns, than rows) it is `regression_map` of the damped Hessians.

    Args:
        task: of `H_t`: a sketch scaled by ``2 / n``.
        kept: of `K`, weighed; a sketch that has seen nothing keeps nothing.
        damping: share of the mean diagonal that is added to the diagonal of both; columns that were never activated
            get 1 before.

    Returns:
        A function of rows ``(k, c)`` that returns rows of the same shape and dtype; float64 inside.

    Raises:
        ValueError: other columns, a negative damping, or `H_t + K` is singular without any.

    Source: the closed form is RegMean's (Jin et al., ICLR 2023, equation 2); the inverse of a low-rank matrix plus a
    diagonal is Woodbury's. Decision: what the sketch lacks is put on the diagonal, where its exact value is known.

    Example:
        >>> import torch
        >>> task, kept = InputSketch(2, 2), InputSketch(2, 2)
        >>> task.update(torch.eye(2))
        >>> kept.update(torch.diag(torch.tensor([0.0, 3.0**0.5])))
        >>> sketched_regression_map(task, kept, damping=0.0)(torch.tensor([[1.0, 1.0]]))
        tensor([[0.5000, 0.2500]])
    """
    if kept.columns != task.columns:
        raise ValueError(f"kept: expected a sketch of {task.columns} columns, got one of {kept.columns}.")
    check_number("damping", damping, low=0.0)
    device = task.diagonal.device
    task_factor, task_rest = _factor_and_rest(task, damping, device)
    kept_factor, kept_rest = _factor_and_rest(kept, damping, device)
    rest = task_rest + kept_rest
    if not bool((rest > 0).all()):
        raise ValueError("task + kept is not positive definite; damp the Hessians.")
    factor = torch.cat([task_factor, kept_factor])
    leaning = factor / rest
    inner = leaning @ factor.T
    inner.diagonal().add_(1.0)
    cholesky, info = torch.linalg.cholesky_ex(inner)
    if int(info) != 0:
        raise ValueError("task + kept is not positive definite; damp the Hessians.")

    @torch.no_grad()
    def apply(rows: Tensor) -> Tensor:
        check_float("rows", rows, ("k", "c"))
        if rows.shape[1] != len(rest):
            raise ValueError(f"rows: expected shape (k, {len(rest)}), got {describe(rows)}.")
        wide = rows.to(device, torch.float64)
        acted = (wide @ task_factor.T) @ task_factor + wide * task_rest
        taken = torch.cholesky_solve((acted @ leaning.T).T, cholesky).T @ leaning
        return (acted / rest - taken).to(rows.device, rows.dtype)

    return apply


def _factor_and_rest(sketch: InputSketch, damping: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """`B` `(l, c)` and the diagonal `(c,)` of the rest, damped; float64."""
    rows, diagonal = sketch.rows.to(device, torch.float64), sketch.diagonal.to(device)
    if sketch.count == 0:
        return rows, diagonal
    dead = diagonal == 0
    lam = damping * torch.where(dead, 1.0, diagonal).mean()
    lacking = (diagonal - rows.square().sum(0)).clamp(min=0.0)  # rounding may leave less than nothing
    return rows, lacking + torch.where(dead, 1.0 + lam, lam)
