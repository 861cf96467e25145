"""The linear algebra behind `hpa_lightning.functional.hessian`: `diag(H^-1)` from a Gram matrix or from rows.

`lam` is the damping added to the diagonal, `damping * mean(diag H)`, with 1 for never-activated columns in
the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import blocks
from hpa_lightning.functional.numerics.packed_triangle import PackedTriangle, factors_in_float32


def _damped(diagonal: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return the damping `lam` and the never-activated columns, from `diag H` before either."""
    dead = diagonal == 0
    return damping * torch.where(dead, 1.0, diagonal).mean(), dead


def _singular(damping: float) -> ValueError:
    return ValueError(f"the Hessian is singular at damping={damping:g}: use more calibration tokens or more damping.")


def damp_(gram: PackedTriangle, count: int, damping: float) -> PackedTriangle:
    """Turn `X^T X` into the damped `H = (2/n) X^T X`, in place."""
    gram.flat.mul_(2.0 / count)
    lam, dead = _damped(gram.diagonal(), damping)
    gram.add_diagonal_(torch.where(dead, 1.0 + lam, lam))
    return gram


def diagonal_from_gram_(gram: PackedTriangle, count: int, damping: float) -> Tensor:
    """`diag(H^-1)` from `X^T X`, which is overwritten."""
    damp_(gram, count, damping)
    if factors_in_float32(gram.flat.device, damping):
        with torch.autocast(gram.flat.device.type, enabled=False):
            factor = gram.clone(torch.float32)
            if factor.cholesky_():
                return factor.inverse_diagonal()
    if not gram.cholesky_():
        raise _singular(damping)
    return gram.inverse_diagonal()


def diagonal_from_rows(rows: Tensor, damping: float) -> Tensor:
    """`diag(H^-1)` from the inputs, on the n-by-n side (Woodbury) where that is the smaller."""
    n, c = rows.shape
    scale = 2.0 / n
    diagonal = torch.empty(c, dtype=torch.float64, device=rows.device)
    for columns in blocks(c, n):
        diagonal[columns] = rows[:, columns].to(torch.float64).square().sum(0) * scale
    lam, dead = _damped(diagonal, damping)
    live = (~dead).nonzero().squeeze(1)
    result = torch.where(dead, 1.0 / (1.0 + lam), 0.0)
    if len(live) == 0:
        return result
    if len(live) <= n or damping == 0:
        hessian = PackedTriangle(len(live), rows.device)
        hessian.add_rows_(rows[:, live].to(torch.float64), damping)
        hessian.flat.mul_(scale)
        hessian.add_diagonal_(lam.expand(len(live)))
        if not hessian.cholesky_():
            raise _singular(damping)
        result[live] = hessian.inverse_diagonal()
        return result
    matrix = PackedTriangle(n, rows.device)
    for columns in blocks(len(live), n):
        matrix.add_rows_(rows[:, live[columns]].T.to(torch.float64), damping)
    matrix.flat.mul_(scale)
    matrix.add_diagonal_(lam.expand(n))
    if not matrix.cholesky_():
        raise _singular(damping)
    for columns in blocks(len(live), n):
        wide = rows[:, live[columns]].to(torch.float64).mul_(scale**0.5)
        result[live[columns]] = (1.0 - matrix.solved_squares(wide)) / lam
    return result
