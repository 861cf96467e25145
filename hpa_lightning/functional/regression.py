"""Fusing by regression: the update that does most for the task and least to inputs that are to be kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpa_lightning.functional.merging import LoraUpdate, lora_update
from hpa_lightning.functional.numerics.checks import check_finite, check_float, describe


def regression_map(task_hessian: Tensor, kept_hessian: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the linear map of an update ``D -> D H_t (H_t + K)^-1``.

    The result minimises ``tr((D' - D) H_t (D' - D)^T) + tr(D' K D'^T)``: it differs least from the update on the task's
    inputs and does least to the inputs behind ``K``. It acts on the input side alone, so with ``D = g B A`` it maps A.

    Args:
        task_hessian: ``H_t``, ``(c, c)``, symmetric positive semidefinite, any floating dtype.
        kept_hessian: ``K``, same shape; ``H_t + K`` must be positive definite.

    Returns:
        A function of rows ``(k, c)`` that returns rows of the same shape and dtype; float64 inside.

    Raises:
        ValueError: wrong shapes, non-finite values, or ``H_t + K`` is not positive definite.

    Source: the closed form is RegMean's (Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language
    Models", ICLR 2023, equation 2), for the weights before and after a task.

    Example:
        >>> import torch
        >>> identity = torch.eye(2)
        >>> regression_map(identity, torch.diag(torch.tensor([0.0, 3.0])))(torch.tensor([[1.0, 1.0]]))
        tensor([[1.0000, 0.2500]])
    """
    for name, matrix in (("task_hessian", task_hessian), ("kept_hessian", kept_hessian)):
        check_float(name, matrix, ("c", "c"))
        check_finite(name, matrix)
        if matrix.shape[0] != matrix.shape[1] or matrix.shape != task_hessian.shape:
            raise ValueError(f"{name}: expected a square matrix, both of one shape, got {describe(matrix)}.")
    task = task_hessian.to(torch.float64)
    factor, info = torch.linalg.cholesky_ex(task + kept_hessian.to(torch.float64))
    if int(info) != 0:
        raise ValueError("task_hessian + kept_hessian is not positive definite; damp the Hessians.")

    @torch.no_grad()
    def apply(rows: Tensor) -> Tensor:
        check_float("rows", rows, ("k", "c"))
        if rows.shape[1] != task.shape[0]:
            raise ValueError(f"rows: expected shape (k, {task.shape[0]}), got {describe(rows)}.")
        wide = rows.to(torch.float64) @ task
        return torch.cholesky_solve(wide.T, factor).T.to(rows.dtype)

    return apply


@torch.no_grad()
def regression_fusion(
    weight_prev: Tensor, weight_new: Tensor | LoraUpdate, mapping: Callable[[Tensor], Tensor]
) -> Tensor:
    """Fuse the weights before and after a task by regression: `W_prev + D H_t (H_t + K)^-1`.

    Rows are independent of one another, so that some rows of a weight, and of B, may come alone.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: weight after it, same shape, any floating dtype, or the adapter on `weight_prev`.
        mapping: of `regression_map`; layers with the same input share it.

    Returns:
        `(out_features, in_features)`, float32.

    Raises:
        ValueError: wrong shapes.

    Source: see `regression_map`.

    Example:
        >>> import torch
        >>> mapping = regression_map(torch.eye(2), torch.diag(torch.tensor([0.0, 3.0])))
        >>> regression_fusion(torch.ones(1, 2), torch.tensor([[2.0, 2.0]]), mapping)
        tensor([[2.0000, 1.2500]])
    """
    check_float("weight_prev", weight_prev, ("r", "c"))
    before = weight_prev.float()
    if isinstance(weight_new, LoraUpdate):
        return before + lora_update(mapping(weight_new.lora_a.float()), weight_new.lora_b.float(), weight_new.scaling)
    check_float("weight_new", weight_new, tuple(weight_prev.shape), like=weight_prev)
    return before + mapping(weight_new.float() - before)
