r"""Diagonal of the inverse Hessian of a linear layer, from its calibration inputs.

For a linear layer with inputs `X` of shape `(n, c)` (one row per token) the Hessian of the squared output
error with respect to one output's weights is `H = (2/n) X^T X`. Columns that were never activated
(`H_jj = 0`) get `H_jj = 1`, then `damping * mean(diag H)` is added to the diagonal.

Decision: the factor `1/n` makes Hessians of calibration sets of different sizes comparable.
Decision: `diag(H^-1)` itself is used, not the squared diagonal of a Cholesky factor of `H^-1`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.arena import Arena
from hpa_lightning.functional.numerics.checks import (
    check_finite,
    check_float,
    check_number,
    check_result,
    describe,
    is_dense,
    result_dtype,
)
from hpa_lightning.functional.numerics.inverse_diagonal import damp_, diagonal_from_gram_, diagonal_from_rows
from hpa_lightning.functional.numerics.packed_triangle import PackedTriangle, sums_in_float32


@torch.no_grad()
def inverse_hessian_diagonal(inputs: Tensor, damping: float = 0.01) -> Tensor:
    r"""Compute `diag(H^-1)` of the damped Hessian `H = (2/n) X^T X`.

    What takes fewer operations is factorised. Never-activated columns decouple and have the closed form
    `1 / (1 + lam)`, `lam = damping * mean(diag H)`; with `Y = sqrt(2/n) X` over the other columns it is

    - few rows (`n < 0.6 c`; `n < 0.8 c` for a damping below 0.01): `(1 - ||L^-1 y_j||^2) / lam` with
      `L L^T = lam I + Y Y^T` (Woodbury);
    - else: the squared column norms of `L^-1` with `L L^T = H`, in panels of columns (lower half only). No general
      inverse is formed and `L^-1` is never held as a whole.

    Precision: the condition number of `H` reaches `c / damping`, 4e7 at c = 4096 and damping 1e-4. Float32
    factors would leave an error of `6e-8` times that, so that factors are float64. For `damping >= 0.01` products are
    summed in float32 first, see `HessianAccumulator`; else the result is within 1e-5 of the exact one. On CPUs and on
    data-centre GPUs float64 costs about twice float32; on cards where it costs 32 or 64 times as much, `H` is
    factorised in float32 for `damping >= 0.01`, which adds an error of the size that the sums have.

    Args:
        inputs: calibration inputs `(n, c)`, any floating dtype, CPU or CUDA.
        damping: share of `mean(diag H)` added to the diagonal.

    Returns:
        `(c,)` on the inputs' device, float32 (float64 for float64 inputs), positive.

    Raises:
        ValueError: `inputs` is not a finite floating-point matrix, `damping` is negative, or `damping` is 0
            and `H` is singular.

    Source: Hassibi & Stork, Optimal Brain Surgeon (1993), for the saliency; HPA (arXiv 2511.20158), step 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])         # the second column is never activated
        >>> inverse_hessian_diagonal(x, damping=0.0)           # H = [[2, 0], [0, 1]]
        tensor([0.5000, 1.0000])
    """
    check_float("inputs", inputs, ("n", "c"))
    check_number("damping", damping, low=0.0)
    check_finite("inputs", inputs)
    n, c = inputs.shape
    if n < _most_rows(c, damping):
        diagonal = diagonal_from_rows(inputs, damping)
    else:
        gram = PackedTriangle(c, inputs.device)
        gram.add_rows_(inputs, damping)
        diagonal = diagonal_from_gram_(gram, n, damping)
    return check_result("inverse diagonal", diagonal.to(result_dtype(inputs)))


class HessianAccumulator:
    r"""Stream calibration inputs and return the same `diag(H^-1)` as `inverse_hessian_diagonal`.

    Holds the raw rows while few have come (0.6 of `num_features`; 0.8 for a damping below 0.01), and the lower half of
    the float64 Gram matrix `X^T X` from then on: what is smaller, and what is sooner factorised.

    For `damping >= 0.01` products are summed in float32 over 1024 rows at most (256 on CPUs without AVX512, whose
    longer sums err more) and in float64 from there, which moves `[H^-1]_jj` by up to about
    1e-6 of `H_jj [H^-1]_jj` of itself: by 1e-4 where a column is well explained by the others. Products
    of half-precision inputs are exact in float32; on CUDA they are multiplied on the tensor cores as
    they are (`torch.mm(..., out_dtype=torch.float32)`, where torch has it), which cut off where others round: up to
    4e-6 was seen there, of one sign. Float64 inputs, less damping and a lower precision of float32 products
    (`torch.set_float32_matmul_precision`, `torch.backends.cuda.matmul.fp32_precision`) make all of it float64.

    Args:
        num_features: number of input columns `c`.
        damping: share of `mean(diag H)` added to the diagonal.

    Raises:
        ValueError: `num_features < 1` or `damping` is negative or not finite.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))   # (batch, tokens, c)
        >>> valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])           # padding is left out
        >>> hessian = HessianAccumulator(3)
        >>> hessian.update(x[:1], valid[:1])
        >>> hessian.update(x[1:], valid[1:])
        >>> hessian.count
        8
        >>> torch.allclose(hessian.inverse_diagonal(), inverse_hessian_diagonal(x[valid]))
        True
    """

    def __init__(self, num_features: int, damping: float = 0.01) -> None:
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features: expected an integer >= 1, got {num_features!r}.")
        check_number("damping", damping, low=0.0)
        self.num_features = num_features
        self.damping = damping
        self._count = 0
        self._rows: list[Tensor] = []
        self._arena: Arena | None = None  # where they are
        self._gram: PackedTriangle | None = None
        self._dtype = torch.float32

    @property
    def count(self) -> int:
        """Number of rows `n` (valid positions) seen so far."""
        return self._count

    @torch.no_grad()
    def update(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of inputs.

        Args:
            inputs: `(..., c)`, any floating dtype.
            mask: boolean `(...)`, True at the positions that count (None: all of them).

        Raises:
            ValueError: wrong shape, dtype or mask, or non-finite values at positions that count.
        """
        good = is_dense(inputs) and inputs.is_floating_point() and inputs.dim() >= 1
        if not good or inputs.shape[-1] != self.num_features:
            raise ValueError(
                f"inputs: expected a floating-point tensor of shape (..., {self.num_features}), got {describe(inputs)}."
            )
        if mask is None:
            rows = inputs.reshape(-1, self.num_features)
        elif is_dense(mask) and mask.dtype == torch.bool and mask.shape == inputs.shape[:-1]:
            rows = inputs[mask.to(inputs.device)]
        else:
            raise ValueError(
                f"mask: expected a boolean tensor of shape {tuple(inputs.shape[:-1])} (True counts), "
                f"got {describe(mask)}."
            )
        check_finite("inputs", rows)
        self._dtype = result_dtype(rows) if self._dtype == torch.float32 else self._dtype
        self._add(rows)

    @property
    def is_zero(self) -> bool:
        """Whether every input seen so far is 0, so that the Hessian cannot rank the columns."""
        if self._gram is not None:
            return not bool(self._gram.diagonal().any())
        return not any(bool(rows.any()) for rows in self._rows)

    def merge(self, other: HessianAccumulator) -> None:
        """Add everything `other` has seen; `other` stays as it is.

        Raises:
            ValueError: `other` has another `num_features` or `damping`.
        """
        if (other.num_features, other.damping) != (self.num_features, self.damping):
            raise ValueError(
                f"expected an accumulator with num_features={self.num_features}, damping={self.damping}, "
                f"got num_features={other.num_features}, damping={other.damping}."
            )
        self._dtype = torch.promote_types(self._dtype, other._dtype)
        if other._gram is None:
            for rows in other._rows:
                self._add(rows)
            return
        gram = self._switch_to_gram(other._gram.flat.device)
        gram.flat += other._gram.flat.to(gram.flat.device)
        self._count += other._count

    @torch.no_grad()
    def all_reduce(self, group: Any = None) -> None:
        """Make what all processes have seen what this one has seen; every process of ``group`` has to call it.

        If all have few rows together, these are gathered; else the Gram matrices are summed. One that has seen nothing
        needs an `update` without rows before, which gives it dtype and device.
        """
        held = self._gram.flat if self._gram is not None else self._rows[0]
        size = torch.distributed.get_world_size(group)
        counts = torch.zeros(size, dtype=torch.int64, device=held.device)
        counts[torch.distributed.get_rank(group)] = self._count
        torch.distributed.all_reduce(counts, group=group)
        rows_of = counts.tolist()
        if sum(rows_of) < _most_rows(self.num_features, self.damping):
            own = _concatenated_(self._rows)
            padded = torch.cat([own, own.new_zeros(max(rows_of) - len(own), self.num_features)])
            everyone = padded.new_empty(size * len(padded), self.num_features)
            torch.distributed.all_gather_into_tensor(everyone, padded, group=group)
            parts = everyone.view(size, -1, self.num_features)
            self._rows = [part[:rows] for part, rows in zip(parts, rows_of, strict=True)]
        else:
            gram = self._switch_to_gram(held.device)
            torch.distributed.all_reduce(gram.flat, group=group)
        self._count = sum(rows_of)

    def gram(self) -> Tensor:
        """Return a copy of `X^T X`, `(c, c)` float64: sum it and `count` over processes, then `from_gram`."""
        return self._as_gram().dense()

    @classmethod
    def from_gram(cls, gram: Tensor, count: int, damping: float = 0.01) -> HessianAccumulator:
        """Build an accumulator from `X^T X` `(c, c)` and its number of rows, e.g. after an all-reduce.

        Raises:
            ValueError: `gram` is not a finite square floating-point matrix or `count` is negative.
        """
        check_float("gram", gram, ("c", "c"))
        if gram.shape[0] != gram.shape[1]:
            raise ValueError(f"gram: expected a square matrix, got {describe(gram)}.")
        check_finite("gram", gram)
        if count < 0:
            raise ValueError(f"count: expected a number of rows >= 0, got {count}.")
        accumulator = cls(gram.shape[0], damping)
        accumulator._gram = PackedTriangle.from_dense(gram.detach())
        accumulator._count = int(count)
        return accumulator

    @torch.no_grad()
    def inverse_diagonal(self, release: bool = False) -> Tensor:
        """Return `diag(H^-1)` `(c,)` of everything seen so far; more updates may follow.

        Args:
            release: factorise the sums in place, which saves a copy of them, and forget everything.

        Raises:
            ValueError: no row was seen, or `damping` is 0 and the Hessian is singular.
        """
        if self._count == 0:
            raise ValueError("no calibration rows were seen: call update() with at least one valid position.")
        gram, count = self._gram, self._count
        self._arena = None
        rows = _concatenated_(self._rows) if gram is None else None
        self._rows = [] if rows is None or release else [rows]
        if release:
            self._gram, self._count = None, 0
        if rows is not None:
            return check_result("inverse diagonal", diagonal_from_rows(rows, self.damping).to(self._dtype))
        assert gram is not None
        diagonal = diagonal_from_gram_(gram if release else gram.clone(), count, self.damping)
        return check_result("inverse diagonal", diagonal.to(self._dtype))

    @torch.no_grad()
    def hessian(self) -> Tensor:
        """Return the damped `H` `(c, c)`, float64, of everything seen so far; more updates may follow.

        Raises:
            ValueError: no row was seen.
        """
        if self._count == 0:
            raise ValueError("no calibration rows were seen: call update() with at least one valid position.")
        return damp_(self._as_gram(), self._count, self.damping).dense()

    def _add(self, rows: Tensor) -> None:
        if rows.shape[0] == 0 and (self._rows or self._gram is not None):
            return
        limit = _most_rows(self.num_features, self.damping)
        if self._gram is None and self._count + rows.shape[0] < limit:
            # A view of an activation may be overwritten in place by the model before it is read here.
            self._arena = self._arena or Arena(limit * self.num_features)
            self._rows.append(self._arena.keep(rows))
        else:
            gram = self._switch_to_gram(rows.device)
            gram.add_rows_(rows.to(gram.flat.device), self.damping)
        self._count += rows.shape[0]

    def _switch_to_gram(self, device: torch.device) -> PackedTriangle:
        if self._gram is None:
            self._gram = PackedTriangle(self.num_features, device)
            self._arena = None
            while self._rows:
                self._gram.add_rows_(self._rows.pop(0).to(device), self.damping)
        return self._gram

    def _as_gram(self) -> PackedTriangle:
        """A copy of `X^T X`."""
        if self._gram is not None:
            return self._gram.clone()
        gram = PackedTriangle(self.num_features, self._rows[0].device if self._rows else torch.device("cpu"))
        for rows in self._rows:
            gram.add_rows_(rows, damping=0.0)  # few rows, whose sum is singular: all of it in float64
        return gram


def _most_rows(columns: int, damping: float) -> int:
    """Rows from which on the Gram matrix takes fewer operations than the rows.

    In units of `c^3`, `x = n / c`: `2 x^2 + x^3 / 3` for the rows, in float64; `2/3` in float64 and `x` for the sums,
    in float64 or, four times as fast, in float32.
    """
    return math.ceil((0.6 if sums_in_float32(damping) else 0.8) * columns)


def _concatenated_(rows: list[Tensor]) -> Tensor:
    """The parts as one tensor; each part leaves the list, and the memory, when it has been copied."""
    if len(rows) == 1:
        return rows.pop()
    dtype = rows[0].dtype
    for part in rows[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    result = torch.empty(sum(map(len, rows)), rows[0].shape[1], dtype=dtype, device=rows[0].device)
    start = 0
    while rows:
        part = rows.pop(0)
        result[start : start + len(part)] = part
        start += len(part)
    return result
