"""A symmetric positive definite matrix as its lower half, in panels of columns: sums, Cholesky factor, inverse.

Panel k holds the columns of block k from the diagonal downwards, `(c - start_k, width)`; what is above the diagonal
inside its first square is not used. Half the memory and half the multiplications of a full matrix, and everything but
the small squares on the diagonal is matrix products.

Operations for `c` columns: `n c^2` to add `n` rows, `c^3 / 3` to factorise, `c^3 / 3` for the diagonal of the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.matrix_products import (
    float32_products_are_exact,
    float64_is_fast,
    product_of_rows,
)

# Columns of a panel. On a CPU the products of a panel should stay in its caches; a GPU waits for the launches, and for
# the factorisations and solves of the squares on the diagonal, if panels are narrow.
_CPU_COLUMNS = 256
_COLUMNS = 2048
# Smallest damping at which products may be summed in float32; see `add_rows_`.
_FLOAT32_DAMPING = 1e-2
# Rows that are summed in float32 before the sum moves on in float64. Of fewer, the moving on shows (256 rows on a CPU
# with AVX512: 1.4 times as long in all); the error is the same from 512 on, and half of it with 256.
_FLOAT32_ROWS = 1024
# On a CPU with AVX2 alone 1024 rows err by more than 2e-6 of the variance inflation on the inputs of the tests, and 256
# by less than 1e-6; a diagonal takes about a tenth longer, the sums alone (`benchmarks/sums.py`) up to half.
_NARROW_FLOAT32_ROWS = 256


class PackedTriangle:
    """The lower half of a symmetric `(c, c)` matrix, float64, zero at first.

    Args:
        columns: `c`.
        device: where it is.
        dtype: float64, in which sums are held; a factor may be float32, see `factors_in_float32`.
    """

    def __init__(self, columns: int, device: torch.device, dtype: torch.dtype = torch.float64) -> None:
        self.columns = columns
        width = _CPU_COLUMNS if device.type == "cpu" else _COLUMNS
        self._starts = list(range(0, columns, width))
        sizes = [(columns - start) * (min(start + width, columns) - start) for start in self._starts]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        parts = self.flat.split(sizes)
        self._panels = [part.view(columns - start, -1) for part, start in zip(parts, self._starts, strict=True)]

    @classmethod
    def from_dense(cls, matrix: Tensor) -> PackedTriangle:
        """Take the lower half of a dense symmetric matrix."""
        result = cls(matrix.shape[0], matrix.device)
        for start, panel in result:
            panel.copy_(matrix[start:, start : start + panel.shape[1]])
        return result

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """First column and panel of each block."""
        return zip(self._starts, self._panels, strict=True)

    def clone(self, dtype: torch.dtype = torch.float64) -> PackedTriangle:
        """A copy, in another dtype if asked for."""
        result = PackedTriangle(self.columns, self.flat.device, dtype)
        result.flat.copy_(self.flat)
        return result

    def dense(self) -> Tensor:
        """The whole matrix, `(c, c)`."""
        result = torch.empty(self.columns, self.columns, dtype=self.flat.dtype, device=self.flat.device)
        for start, panel in self:
            width = panel.shape[1]
            lower = panel[:width].tril()
            result[start : start + width, start : start + width] = lower + lower.tril(-1).T
            result[start + width :, start : start + width] = panel[width:]
            result[start : start + width, start + width :] = panel[width:].T
        return result

    def diagonal(self) -> Tensor:
        """A copy of the diagonal, `(c,)`."""
        return torch.cat([panel.diagonal() for _, panel in self])

    def add_diagonal_(self, values: Tensor) -> None:
        """Add `(c,)` values to the diagonal."""
        for start, panel in self:
            panel.diagonal().add_(values[start : start + panel.shape[1]])

    def add_rows_(self, rows: Tensor, damping: float) -> None:
        """Add `rows^T rows` of `(n, c)` rows, any floating dtype.

        Float64 throughout, or, for a damping of at least 0.01, products of float32 that are summed over 1024 rows at
        most in float32 (256 on CPUs without AVX512) and from there in float64; products of half-precision inputs are
        exact then. The relative error of `[H^-1]_jj` is about 1e-6 of `H_jj [H^-1]_jj`, the variance inflation of
        column j, which is at most `H_jj / (damping * mean(diag H))` (measured on CPUs: at most 9e-7 of it, on
        correlated inputs, with outlier columns and with outlier rows). On CUDA half-precision inputs go to the tensor
        cores as they are; these cut off where others round, and the error is up to 4e-6 there, with one sign (measured
        on an H200).
        """
        with torch.autocast(rows.device.type, enabled=False):  # it would round float32 products to half precision
            self._add_rows_(rows, _float32_products(rows, damping))

    def _add_rows_(self, rows: Tensor, narrow: torch.dtype | None) -> None:
        parts = math.ceil(rows.shape[0] / _float32_rows(rows.device))
        for part in rows.tensor_split(parts) if parts else ():
            part = part.to(narrow or torch.float64).T
            if narrow is torch.float32 and part.device.type == "cpu":
                part = part.contiguous()
            for first, panel in self:
                left, right = part[first:], part[first : first + panel.shape[1]]
                if narrow is None:
                    panel.addmm_(left, right.T)
                else:
                    panel += product_of_rows(left, right)

    def cholesky_(self) -> bool:
        """Replace the matrix by its lower Cholesky factor; False if it is not positive definite."""
        for block, (start, panel) in enumerate(self):
            width = panel.shape[1]
            for before, left in zip(self._starts[:block], self._panels[:block], strict=True):
                below = left[start - before :]
                panel.addmm_(below, below[:width].T, alpha=-1.0)
            # The factorisation reads the lower half alone.
            square, info = torch.linalg.cholesky_ex(panel[:width])
            if int(info) != 0:
                return False
            panel[:width] = square
            if len(panel) > width:
                panel[width:] = torch.linalg.solve_triangular(square.T, panel[width:], upper=True, left=False)
        return True

    def inverse_diagonal(self) -> Tensor:
        """`diag(M^-1)`, `(c,)`, of `M = L L^T` whose factor L this is: the column norms of `L^-1`, block by block."""
        result = torch.empty(self.columns, dtype=self.flat.dtype, device=self.flat.device)
        for block, (start, panel) in enumerate(self):
            width = panel.shape[1]
            # The columns of a triangular inverse are zero above the diagonal.
            unit = torch.zeros(self.columns - start, width, dtype=self.flat.dtype, device=self.flat.device)
            unit.diagonal().fill_(1.0)
            result[start : start + width] = self._solved_squares(unit, block)
        return result

    def solved_squares(self, right: Tensor) -> Tensor:
        """`||L^-1 y||^2` of each column y of `right`, `(c, m)` float64, which is overwritten; L is this factor."""
        return self._solved_squares(right, 0)

    def _solved_squares(self, rest: Tensor, block: int) -> Tensor:
        """Forward substitution from that block on."""
        squares = torch.zeros(rest.shape[1], dtype=self.flat.dtype, device=self.flat.device)
        for factor in self._panels[block:]:
            high = factor.shape[1]
            solved = torch.linalg.solve_triangular(factor[:high], rest[:high], upper=False)
            squares += solved.square().sum(0)
            rest = rest[high:]
            if len(rest):
                rest.addmm_(factor[high:], solved, alpha=-1.0)
        return squares


def sums_in_float32(damping: float) -> bool:
    """Whether that much damping allows it; see `PackedTriangle.add_rows_`."""
    return damping >= _FLOAT32_DAMPING


def factors_in_float32(device: torch.device, damping: float) -> bool:
    """Whether a damped Hessian is factorised in float32: on cards whose float64 is slow, if the damping allows it.

    The relative error of `[H^-1]_jj` is then of the size that the float32 sums have: together they stay below 2e-6 of
    the column's variance inflation (tests hold it, on CPUs, with nearly collinear columns and columns of other sizes).
    """
    return sums_in_float32(damping) and not float64_is_fast(device) and float32_products_are_exact(device)


def _float32_rows(device: torch.device) -> int:
    narrow = device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return _NARROW_FLOAT32_ROWS if narrow else _FLOAT32_ROWS


def _float32_products(rows: Tensor, damping: float) -> torch.dtype | None:
    """The dtype of the factors if products may be summed in float32, `None` for float64 throughout."""
    if rows.dtype == torch.float64 or not sums_in_float32(damping):
        return None
    if rows.is_cuda and rows.dtype != torch.float32 and "dtype" in torch.ops.aten.mm.overloads():
        return rows.dtype
    # A lower precision of float32 products, which users may ask for, would reach the sums.
    return torch.float32 if float32_products_are_exact(rows.device) else None
