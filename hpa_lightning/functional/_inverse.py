"""Float64 linear algebra behind `hpa_lightning.functional.hessian`: Gram matrices and `diag(H^-1)`.

`lam` is the damping added to the diagonal, `damping * mean(diag H)`, with 1 for never-activated columns in
the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional._checks import blocks

# Smallest damping at which a Gram matrix summed in float32 keeps diag(H^-1) within 1e-5; see `add_gram`.
_FLOAT32_GRAM_DAMPING = 1e-2
# Rows summed in float32 before the sum moves on in float64.
_FLOAT32_GRAM_ROWS = 1024
# Columns of the triangular inverse that are held at a time.
_INVERSE_COLUMNS = 512


def add_gram(gram: Tensor | None, rows: Tensor, damping: float) -> Tensor:
    """Add `rows^T rows` to a float64 Gram matrix, in place; None starts one."""
    n, c = rows.shape
    if gram is None:
        gram = torch.zeros(c, c, dtype=torch.float64, device=rows.device)
    half = rows.dtype in (torch.float16, torch.bfloat16)
    if half and rows.is_cuda and damping >= _FLOAT32_GRAM_DAMPING and _mm_has_out_dtype():
        for start in range(0, n, _FLOAT32_GRAM_ROWS):
            part = rows[start : start + _FLOAT32_GRAM_ROWS]
            gram += torch.mm(part.T, part, out_dtype=torch.float32)
        return gram
    for lines in blocks(n, c):
        wide = rows[lines].to(torch.float64)
        gram.addmm_(wide.T, wide)
    return gram


def _mm_has_out_dtype() -> bool:
    return "dtype" in torch.ops.aten.mm.overloads()


def _damped(diagonal: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return the damping `lam` and the never-activated columns, from `diag H` before either."""
    dead = diagonal == 0
    return damping * torch.where(dead, 1.0, diagonal).mean(), dead


def _cholesky(matrix: Tensor, damping: float) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise ValueError(
            f"the Hessian is singular at damping={damping:g}: use more calibration tokens or more damping."
        )
    return factor


def damped_hessian(gram: Tensor, count: int, damping: float) -> Tensor:
    """`H = (2/n) X^T X`, damped, from `X^T X` (overwritten)."""
    hessian = gram.mul_(2.0 / count)
    diagonal = hessian.diagonal()
    lam, dead = _damped(diagonal, damping)
    diagonal += torch.where(dead, 1.0 + lam, lam)
    return hessian


def diagonal_from_gram(gram: Tensor, count: int, damping: float) -> Tensor:
    """`diag(H^-1)` from `X^T X` (overwritten): column norms of the inverse Cholesky factor."""
    factor = _cholesky(damped_hessian(gram, count, damping), damping)
    c = factor.shape[0]
    result = torch.empty(c, dtype=torch.float64, device=gram.device)
    for start in range(0, c, _INVERSE_COLUMNS):
        # Columns from `start` on of a lower-triangular inverse are zero above row `start`.
        width = min(_INVERSE_COLUMNS, c - start)
        unit = torch.eye(c - start, width, dtype=torch.float64, device=gram.device)
        inverse = torch.linalg.solve_triangular(factor[start:, start:], unit, upper=False)
        result[start : start + width] = inverse.square_().sum(0)
    return result


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
        wide = rows[:, live].to(torch.float64)
        hessian = (wide.T @ wide).mul_(scale)
        hessian.diagonal().add_(lam)
        factor = _cholesky(hessian, damping)
        unit = torch.eye(len(live), dtype=torch.float64, device=rows.device)
        result[live] = torch.linalg.solve_triangular(factor, unit, upper=False).square_().sum(0)
        return result
    matrix = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    for columns in blocks(len(live), n):
        wide = rows[:, live[columns]].to(torch.float64)
        matrix.addmm_(wide, wide.T, alpha=scale)
    matrix.diagonal().add_(lam)
    factor = _cholesky(matrix, damping)
    for columns in blocks(len(live), n):
        wide = rows[:, live[columns]].to(torch.float64).mul_(scale**0.5)
        captured = torch.linalg.solve_triangular(factor, wide, upper=False).square_().sum(0)
        result[live[columns]] = (1.0 - captured) / lam
    return result
