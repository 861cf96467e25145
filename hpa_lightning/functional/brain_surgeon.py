r"""Optimal-brain-surgeon edits of a linear layer: the factor, and the compensation for entries that move.

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

from collections.abc import Callable

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    check_finite,
    check_float,
    check_number,
    check_result,
    describe,
    is_dense,
)

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
    found: Tensor = torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1).contiguous()
    return found


@torch.no_grad()
def compensate(
    weight: Tensor, target: Tensor, moved: Tensor, factor: Tensor, columns_at_once: int = 1, strength: float = 1.0
) -> Tensor:
    """Move some entries of a weight to given values and let the columns behind them make up for it.

    An entry that is moved ends at its target exactly, whatever compensation reached it before; any other entry ends
    at its own value plus the compensation from the columns to its left.

    Args:
        weight: the weight whose layer output is to be kept, `(out_features, in_features)`, any floating dtype.
        target: the values to move to, same shape, any floating dtype; used where `moved` is True.
        moved: boolean, same shape.
        factor: `U`, `(in_features, in_features)`, from :func:`surgeon_factor`.
        columns_at_once: columns that move before what they change reaches the columns behind; those of one group do
            not make up for one another. 1 is the optimal-brain-surgeon step.
        strength: factor of the compensation; 1 is the optimal one, 0 none.

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
    check_edit(weight, target, factor, names=("weight", "target"))
    if not is_dense(moved) or moved.dtype != torch.bool or moved.shape != weight.shape:
        raise ValueError(f"moved: expected a boolean tensor of shape {tuple(weight.shape)}, got {describe(moved)}.")
    if moved.device != weight.device:
        raise ValueError(f"moved: expected a tensor on {weight.device} like weight, got {describe(moved)}.")
    sweep = Sweep(weight, target, factor, columns_at_once, strength)
    sweep.move(0, weight.shape[1], moved)
    return check_result("compensated weight", sweep.result())


class Sweep:
    """Goes over a weight's columns from left to right, so that entries can be chosen from what compensation has left.

    Args:
        weight, target, factor, columns_at_once, strength: see :func:`compensate`; checked by the caller.
    """

    def __init__(
        self, weight: Tensor, target: Tensor, factor: Tensor, columns_at_once: int = 1, strength: float = 1.0
    ) -> None:
        check_block_size(columns_at_once, "columns_at_once")
        check_number("strength", strength)
        # Transposed, so that a column of the weight is contiguous.
        self._current = weight.to(torch.float64).T.clone(memory_format=torch.contiguous_format)
        self._goal = target.T.contiguous()
        self._upper = factor.to(torch.float64)
        self._at_once = columns_at_once
        self._strength = strength

    def columns(self, start: int, stop: int) -> Tensor:
        """The columns from ``start`` to ``stop`` as compensation has left them, `(out_features, stop - start)`."""
        return self._current[start:stop].T

    def result(self) -> Tensor:
        """The weight, `(out_features, in_features)`, float64."""
        return self._current.T.contiguous()

    def move(self, start: int, stop: int, moved: Tensor) -> None:
        """Move the entries ``moved``, `(out_features, stop - start)`, of those columns; all behind make up for it."""
        move, width = moved.T.contiguous(), self._at_once * max(1, _LAZY_COLUMNS // self._at_once)
        for first in range(start, stop, width):
            last = min(first + width, stop)
            self._move_lazily(first, last, move[first - start : last - start])

    def _move_lazily(self, start: int, stop: int, move: Tensor) -> None:
        result, upper = self._current, self._upper
        goals = self._goal[start:stop].to(torch.float64)
        errors = torch.empty_like(goals)
        for first in range(start, stop, self._at_once):
            last = min(first + self._at_once, stop)
            own = slice(first - start, last - start)
            # A column's error comes from its own pivot alone, also where several move at once.
            pivots = upper.diagonal()[first:last].unsqueeze(1)
            errors[own] = torch.where(move[own], (result[first:last] - goals[own]) / pivots, 0.0)
            if self._at_once == 1:
                result[last:stop].addr_(upper[first, last:stop], errors[first - start], alpha=-self._strength)
            else:
                result[last:stop].addmm_(upper[first:last, last:stop].T, errors[own], alpha=-self._strength)
        result[start:stop] = torch.where(move, goals, result[start:stop])
        result[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-self._strength)


def edit_in_blocks(
    sweep: Sweep, columns: int, block_size: int, choose: Callable[[slice, Tensor], Tensor], original: Tensor | None
) -> Tensor:
    """Choose the entries that move block by block, and move them.

    Args:
        sweep: over the weight.
        columns: number of columns.
        block_size: columns that are chosen together.
        choose: block, and its columns `(out_features, block_size)`, -> boolean of that shape, True where they move.
        original: the weight to choose from, or `None` for what compensation from earlier blocks has left.

    Returns:
        Boolean `(out_features, in_features)`, the entries that moved.
    """
    blocks = [slice(start, min(start + block_size, columns)) for start in range(0, columns, block_size)]
    if original is not None:
        moved = torch.cat([choose(block, original[:, block]) for block in blocks], dim=1)
        sweep.move(0, columns, moved)
        return moved
    chosen = []
    for block in blocks:
        chosen.append(choose(block, sweep.columns(block.start, block.stop)))
        sweep.move(block.start, block.stop, chosen[-1])
    return torch.cat(chosen, dim=1)


def check_edit(
    weight: Tensor, other: Tensor, factor: Tensor, names: tuple[str, str] = ("weight_prev", "weight_new")
) -> None:
    """Refuse weights that do not fit one another or the factor, and values that are not finite."""
    check_float(names[0], weight, ("r", "c"))
    check_float(names[1], other, tuple(weight.shape), like=weight)
    check_float("factor", factor, (weight.shape[1], weight.shape[1]), like=weight)
    for name, tensor in ((names[0], weight), (names[1], other), ("factor", factor)):
        check_finite(name, tensor)


def check_block_size(block_size: int, name: str = "block_size") -> None:
    """Refuse anything but an integer of at least 1."""
    if not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {block_size!r}.")
