"""The input directions that calibration data live in, and updates that stay out of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    cache_blocks,
    check_finite,
    check_float,
    check_number,
    describe,
    is_dense,
)
from hpa_lightning.functional.numerics.matrix_products import float32_products_are_exact

_SMALLEST_ENTRY = 2.0**-18
"""Of a bfloat16 basis. Half a unit of its last bit is 7e-9, and U's float32 entries make one off by about 1e-11."""


@torch.no_grad()
def dominant_subspace(hessian: Tensor, energy: float) -> Tensor:
    """Return the fewest eigenvectors of a Hessian that hold a share of its trace.

    Args:
        hessian: ``(c, c)``, symmetric positive semidefinite, any floating dtype.
        energy: share of the trace in [0, 1]; 0 gives no direction, 1 all of them.

    Returns:
        ``U`` ``(c, k)`` with orthonormal columns, largest eigenvalue first; fp32 (fp64 for fp64 input).

    Raises:
        ValueError: wrong shape, non-finite values or an energy outside [0, 1].

    Source: gradient projection memory (Saha et al., ICLR 2021), equations 5 and 9, for uncentred activations.

    Example:
        >>> import torch
        >>> dominant_subspace(torch.diag(torch.tensor([1.0, 8.0, 1.0])), energy=0.8).abs().T
        tensor([[0., 1., 0.]])
    """
    check_float("hessian", hessian, ("c", "c"))
    check_finite("hessian", hessian)
    check_number("energy", energy, 0.0, 1.0)
    if hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"hessian: expected a square matrix, got {describe(hessian)}.")
    values, vectors = torch.linalg.eigh(hessian.to(torch.float64))
    values = values.flip(0).clamp(min=0.0)
    held = values.cumsum(0) / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    count = int((held < energy * (1 - 1e-12)).sum()) + 1 if energy > 0 and float(values[0]) > 0 else 0
    count = len(values) if energy == 1 else count
    found: Tensor = vectors.flip(1)[:, :count].to(hessian.dtype if hessian.dtype == torch.float64 else torch.float32)
    return found


@torch.no_grad()
def joint_basis(first: Tensor, second: Tensor) -> Tensor:
    """Return a basis of what two bases span together: the first, and what the second has outside of it.

    Args:
        first, second: ``(c, j)`` and ``(c, k)``, columns orthonormal up to rounding.

    Returns:
        ``(c, l)`` with orthonormal columns, ``max(j, k) <= l <= j + k``, in the first one's dtype. A direction of the
        second with less than 1e-6 of its energy outside of the first counts as inside.

    Raises:
        ValueError: a wrong shape, or values that are not finite.

    Example:
        >>> import torch
        >>> eye = torch.eye(3)
        >>> joint_basis(eye[:, :1], eye[:, :2]).abs().T
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    for name, basis in (("first", first), ("second", second)):
        if not (is_dense(basis) and basis.dim() == 2 and basis.shape[1] == 0):
            check_float(name, basis, ("c", "k"))
            check_finite(name, basis)
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"second: expected as many rows as first, got {describe(first)} and {describe(second)}.")
    if first.shape[1] == 0 or second.shape[1] == 0:
        return second if first.shape[1] == 0 else first
    known, new = first.double(), second.double()
    for _ in range(2):  # once more: what rounding has left
        new = new - known @ (known.T @ new)
    directions, sizes, _ = torch.linalg.svd(new, full_matrices=False)
    return torch.cat([first, directions[:, sizes > 1e-3].to(first.dtype)], 1)


@torch.no_grad()
def half_precision_basis(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Round a basis to bfloat16 and make it orthonormal again, the first column first.

    What is projected on is then exactly what a bfloat16 copy spans, so that a checkpoint may hold that copy:
    :func:`half_precision_copy` makes it of what is returned here, bit for bit, and this function makes the same ``U``
    of it. A column turns by about 1.6e-3 (bfloat16 has eight bits), so that 3e-6 of what lies along it lies outside.

    Args:
        basis: ``(c, k)``, columns orthonormal up to rounding.

    Returns:
        ``U`` ``(c, k)`` with orthonormal columns and ``turn`` ``(k, k)``, upper triangular; float32 on the CPU.

    Example:
        >>> basis, turn = half_precision_basis(torch.tensor([[0.6], [0.8]]))
        >>> again, _ = half_precision_basis(half_precision_copy(basis, turn))
        >>> torch.equal(basis, again)
        True
    """
    if isinstance(basis, Tensor) and basis.dim() == 2 and basis.shape[1] == 0:
        return basis.cpu().float(), torch.empty(0, 0)
    check_float("basis", basis, ("c", "k"))
    half = _half(basis.cpu()).double()
    factor = torch.linalg.cholesky(half.T @ half)
    return torch.linalg.solve_triangular(factor, half.T, upper=False).T.float().contiguous(), factor.T.float()


@torch.no_grad()
def half_precision_copy(basis: Tensor, turn: Tensor) -> Tensor:
    """Return the bfloat16 matrix ``(c, k)``, on the CPU, that :func:`half_precision_basis` made a basis of.

    Args:
        basis, turn: as it returned them.

    Example:
        >>> half_precision_copy(*half_precision_basis(torch.tensor([[0.6], [0.8]]))).T
        tensor([[0.6016, 0.8008]], dtype=torch.bfloat16)
    """
    return _half(basis.cpu().double() @ turn.double())


def _half(basis: Tensor) -> Tensor:
    """Rounded to bfloat16; entries that are too small to come out of a product with U again are 0."""
    rounded = basis.to(torch.bfloat16)
    return torch.where(rounded.abs() < _SMALLEST_ENTRY, 0.0, rounded)


def _check_basis(basis: Tensor, rows: Tensor) -> None:
    check_float("basis", basis, ("c", "d"))
    if rows.shape[1] != basis.shape[0]:
        raise ValueError(f"basis: expected {rows.shape[1]} rows, one for each input column, got {describe(basis)}.")


def _working_dtype(basis: Tensor, rows: Tensor) -> torch.dtype:
    """What the products with a basis are computed in."""
    return basis.dtype if float32_products_are_exact(rows.device) else torch.float64


@torch.no_grad()
def leave_subspace_(rows: Tensor, basis: Tensor) -> None:
    """Remove the part of ``rows`` along ``basis``, in place: ``rows <- rows (I - U U^T)``.

    Args:
        rows: ``(k, c)``, any floating dtype; ``k`` may be 0.
        basis: ``U`` ``(c, d)`` with orthonormal columns; without any, nothing changes.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 2.0]])
        >>> leave_subspace_(rows, torch.tensor([[1.0], [0.0]]))
        >>> rows
        tensor([[0., 2.]])
    """
    if isinstance(rows, Tensor) and rows.dim() == 2 and len(rows) == 0:
        return  # a process whose share of a sharded factor is empty
    check_float("rows", rows, ("k", "c"))
    if isinstance(basis, Tensor) and basis.shape == (rows.shape[1], 0):
        return  # nothing to leave
    _check_basis(basis, rows)
    exact = _working_dtype(basis, rows)
    wide, basis = rows.to(exact), basis.to(exact)
    with torch.autocast(rows.device.type, enabled=False):
        rows.copy_(wide - (wide @ basis) @ basis.T)


@torch.no_grad()
def null_space_projection_(trained: Tensor, origin: Tensor | None, basis: Tensor) -> None:
    """Remove what an update does to the inputs in the span of `basis`, in place: `D <- D (I - U U^T)`.

    With LoRA that is `A <- A (I - U U^T)`, exactly. A whole weight is rounded once, at its own size.

    Args:
        trained: the weight, `(out_features, in_features)`, or LoRA's `A`, `(rank, in_features)`, or some rows of them.
        origin: the same where there is no update; None: 0, LoRA's `A`.
        basis: `U` `(in_features, d)` with orthonormal columns; of `dominant_subspace`.

    Raises:
        ValueError: wrong shapes.

    Source: gradient projection memory (Saha et al., ICLR 2021), equation 7, of the weights' update in place of the
    gradient, since Adam's step leaves the subspace (as Adam-NSCL, Wang et al., CVPR 2021, does with each step).

    Example:
        >>> import torch
        >>> weight = torch.tensor([[2.0, 3.0]])
        >>> null_space_projection_(weight, torch.ones(1, 2), torch.tensor([[1.0], [0.0]]))
        >>> weight
        tensor([[1., 3.]])
    """
    if origin is None:
        leave_subspace_(trained, basis)
        return
    if isinstance(trained, Tensor) and trained.dim() == 2 and len(trained) == 0:
        return  # a process whose share of a sharded weight is empty
    check_float("origin", origin, ("r", "c"))
    check_float("trained", trained, tuple(origin.shape), like=origin)
    if isinstance(basis, Tensor) and basis.shape == (trained.shape[1], 0):
        return  # nothing to leave
    _check_basis(basis, trained)
    wide = _working_dtype(basis, trained)
    basis = basis.to(wide)
    with torch.autocast(trained.device.type, enabled=False):
        for lines in cache_blocks(trained):
            rows, before = trained[lines], origin[lines]
            update = rows.to(wide) - before.to(wide)
            along = update @ basis
            if rows.dtype == wide:
                rows.addmm_(along, basis.T, alpha=-1)
            else:
                rows.copy_(update.addmm_(along, basis.T, alpha=-1).add_(before))
