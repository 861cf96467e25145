r"""What a layer's inputs do, in a few rows: a sketch of `X^T X` that is made while the activations stream by.

Frequent Directions keeps `l` rows `B` for inputs `X` of shape `(n, c)`, and never forms a `c x c` matrix. With `Delta`,
which it counts as it goes,

    0 <= X^T X - B^T B <= Delta I,    Delta <= ||X - X_k||_F^2 / (l + 1 - k)   for every k <= l,

where `X_k` is the best approximation of rank k. So for an update `D` `(r, c)` of the layer, what it does to all inputs
together is known from the sketch alone:

    ||X D^T||_F^2 <= ||B D^T||_F^2 + Delta ||D||_F^2,

and an update whose rows are orthogonal to the first k right singular vectors of `B` (singular values `sigma_i`) has
`||X D^T||_F^2 <= (sigma_{k+1}^2 + Delta) ||D||_F^2`.

Source: Liberty, Simple and Deterministic Matrix Sketching (KDD 2013); Ghashami, Liberty, Phillips and Woodruff,
Frequent Directions (SIAM J. Comput. 2016), theorem 1.1 and its proof, for the bound and for merging. Decision: a buffer
of twice the rows is shrunk by its (l+1)-th eigenvalue, so that `l` rows stay; of few columns (`c <= 4 l`) `X^T X` is
summed while inputs come, and shrunk once, so that `Delta` is its (l+1)-th eigenvalue and no more. The diagonal of
`X^T X` is kept beside the rows, exactly: it tells what they lack of each column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from hpa_lightning.functional.shrinking import gram_of_rows, rounding_error, shrink_gram, shrink_rows

_FEW_COLUMNS = 4
"""Of a sketch, for each row of its rank: up to so many, one eigendecomposition of all columns takes less than those of
`2 rank` columns for every `rank` new rows."""


class InputSketch:
    r"""A Frequent Directions sketch of a layer's inputs; see the module for what it guarantees.

    Memory: twice `rank` rows of `columns` float32 numbers while inputs come, `rank` of them in between (bfloat16 after
    :meth:`round_`). Operations for `rank` new rows: `12 rank^2 columns` in float32, and an eigendecomposition of
    `2 rank` columns in float64. Of at most `4 rank` columns: `columns^2` float64 numbers while inputs come,
    `2 rank columns^2` operations, and one eigendecomposition of `columns` at the end.

    Args:
        columns: c, the layer's input width.
        rank: l, the most rows that are kept; at most c.

    Raises:
        ValueError: `columns` or `rank` are not integers with `1 <= rank <= columns`.

    Example:
        >>> import torch
        >>> sketch = InputSketch(columns=3, rank=2)
        >>> sketch.update(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
        >>> sketch.rows.T @ sketch.rows
        tensor([[9., 0., 0.],
                [0., 4., 0.],
                [0., 0., 0.]])
        >>> sketch.error                           # two rows hold two directions
        0.0
        >>> sketch.basis(energy=0.6).abs().T       # 9 of 13 lie along the first column
        tensor([[1., 0., 0.]])
    """

    def __init__(self, columns: int, rank: int) -> None:
        if not (isinstance(columns, int) and isinstance(rank, int) and 1 <= rank <= columns):
            raise ValueError(f"expected integers 1 <= rank <= columns, got columns={columns!r}, rank={rank!r}.")
        self.columns = columns
        self.rank = rank
        self._error = 0.0
        self.diagonal = torch.zeros(columns, dtype=torch.float64)
        """`diag(X^T X)`, `(c,)` float64, exact, where the inputs are."""
        self.count = 0
        """Rows seen; of merged sketches, all of theirs."""
        self._held: Tensor | None = None  # (<= l, c): the shrunk rows, or the first l rows as they came
        self._pending: list[Tensor] = []  # fewer than l rows in all
        self._gram: Tensor | None = None  # (c, c) float64, of few columns: what came before, not shrunk yet

    @property
    def rows(self) -> Tensor:
        """`B`, `(k, c)` float32 with k <= `rank`, on the inputs' device; no row before the first update."""
        self._settle()
        return torch.empty(0, self.columns) if self._held is None else self._held.float()

    @property
    def trace(self) -> float:
        """`||X||_F^2`, exact."""
        return float(self.diagonal.sum())

    @property
    def is_zero(self) -> bool:
        """Whether every input seen so far is 0, so that no direction differs from another."""
        return not bool(self.diagonal.any())

    @property
    def error(self) -> float:
        """`Delta`: no direction's energy is underestimated by more. Like `rows`, it shrinks what waits first."""
        self._settle()
        return self._error

    @torch.no_grad()
    def update(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of inputs.

        Args:
            inputs: `(..., c)`, any floating dtype.
            mask: boolean `(...)`, True at the positions that count; None: all of them.

        Raises:
            ValueError: wrong shape, dtype or mask, or non-finite values at positions that count.
        """
        good = is_dense(inputs) and inputs.is_floating_point() and inputs.dim() >= 1
        if not good or inputs.shape[-1] != self.columns:
            raise ValueError(
                f"inputs: expected a floating-point tensor of shape (..., {self.columns}), got {describe(inputs)}."
            )
        if mask is not None and not (is_dense(mask) and mask.dtype == torch.bool and mask.shape == inputs.shape[:-1]):
            raise ValueError(
                f"mask: expected a boolean tensor of shape {tuple(inputs.shape[:-1])} (True counts), "
                f"got {describe(mask)}."
            )
        rows = inputs.reshape(-1, self.columns) if mask is None else inputs[mask.to(inputs.device)]
        check_finite("inputs", rows)
        if rows.dtype == torch.float64:
            rows = check_result("inputs, as they are kept,", rows.to(torch.float32))
        self.count += len(rows)
        self.diagonal = self.diagonal.to(rows.device)
        for part in rows.split(self.rank):
            part = part.to(torch.float32, copy=True)  # the model may overwrite what it was fed
            self.diagonal += part.square().sum(0)
            self._add(part)

    def _add(self, rows: Tensor) -> None:
        for part in rows.split(self.rank):
            self._pending.append(part)
            waiting = sum(map(len, self._pending))
            if self.columns > _FEW_COLUMNS * self.rank:
                if waiting >= self.rank:
                    self._settle()
            elif waiting + (0 if self._held is None else len(self._held)) > self.rank:
                self._sum()

    def _sum(self) -> None:
        """Move what is held and what waits into the sum `X^T X`."""
        parts = ([] if self._held is None else [self._held.float()]) + self._pending
        self._held, self._pending = None, []
        if parts:
            gram = gram_of_rows(torch.cat(parts).T)
            self._gram = gram if self._gram is None else self._gram.add_(gram)

    def _settle(self) -> None:
        """Shrink what is held and what waits to `rank` rows, if it is more."""
        if self._gram is not None:
            self._sum()
            self._held, lost = shrink_gram(self._gram, self.rank)
            self._gram = None
        elif self._pending:
            held = [] if self._held is None else [self._held.float()]
            self._held, lost = shrink_rows(torch.cat([*held, *self._pending]), self.rank)
            self._pending = []
        else:
            return
        self._error += lost

    @torch.no_grad()
    def merge(self, other: InputSketch, weight: float = 1.0) -> None:
        """Add what `other` has seen, `weight` times in `X^T X`; `other` stays as it is.

        The sketch's bound holds for the sum: the errors add, and so does what the shrinking loses. `O(c (l1 + l2)^2)`.

        Raises:
            ValueError: other columns, or a negative weight.
        """
        if other.columns != self.columns:
            raise ValueError(f"expected a sketch of {self.columns} columns, got one of {other.columns}.")
        check_number("weight", weight, low=0.0)
        rows = other.rows
        device = self.diagonal.device if self.count else rows.device
        self.diagonal = self.diagonal.to(device) + weight * other.diagonal.to(device)
        if weight > 0 and len(rows):
            self._add(rows.to(device) * weight**0.5)
            self._settle()
            self._error += weight * other.error
        self.count += other.count

    def scaled(self, weight: float, rank: int | None = None) -> InputSketch:
        """A sketch of `weight` times the inputs' `X^T X`, of another rank if asked for; this one stays as it is."""
        result = InputSketch(self.columns, self.rank if rank is None else min(rank, self.columns))
        result.merge(self, weight)
        return result

    @torch.no_grad()
    def round_(self) -> None:
        """Hold the rows in bfloat16 from here on; what that may lose of any direction is counted in `error`.

        `X^T X - B^T B` may then be negative somewhere, by about as much: the upper bounds hold, the lower one not.
        """
        self._settle()
        if self._held is not None and self._held.dtype != torch.bfloat16:
            rounded = self._held.to(torch.bfloat16)
            self._error += rounding_error(self._held, rounded)
            self._held = rounded

    def to(self, device: torch.device | str) -> InputSketch:
        """Move it there, in place, and return it."""
        self._settle()
        self.diagonal = self.diagonal.to(device)
        self._held = None if self._held is None else self._held.to(device)
        return self

    @torch.no_grad()
    def all_reduce(self, group: Any = None) -> None:
        """Make what all processes have seen what this one has seen; every process of ``group`` has to call it.

        One gather of the factors, `rank + 2` rows of float32 numbers from each process, and merging in the order of the
        ranks. A process that has seen nothing needs an `update` without rows before, which gives it the device.
        """
        size = torch.distributed.get_world_size(group)
        rows, device = self.rows.to(self.diagonal.device), self.diagonal.device
        numbers = torch.tensor([self._error, self.count, len(rows)], dtype=torch.float64, device=device)
        filled = torch.cat([rows, rows.new_zeros(self.rank - len(rows), self.columns)]).flatten()
        own = torch.cat([filled, torch.cat([self.diagonal, numbers]).view(torch.float32)])
        everyone = own.new_empty(size * len(own))
        torch.distributed.all_gather_into_tensor(everyone, own, group=group)
        total = InputSketch(self.columns, self.rank)
        for part in everyone.view(size, -1):
            factor, rest = part[: len(filled)], part[len(filled) :].clone().view(torch.float64)
            error, count, used = rest[self.columns :].tolist()
            one = InputSketch(self.columns, self.rank)
            one._held = factor.view(self.rank, self.columns)[: int(used)].clone() if used else None
            one._error, one.count, one.diagonal = error, int(count), rest[: self.columns]
            total.merge(one)
        self.__dict__.update(total.__dict__)

    @torch.no_grad()
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Directions and energies of the sketch: `(V, sigma^2)`, `(c, k)` float32 and `(k,)` float64, largest first."""
        rows = self.rows.double()
        values, vectors = torch.linalg.eigh(gram_of_rows(rows))
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        live = int((values > values[:1] * 1e-14).sum()) if len(values) else 0
        directions = rows.T @ (vectors[:, :live] / values[:live].sqrt())
        return torch.linalg.qr(directions).Q.float() if live else directions.float(), values[:live]

    def basis(self, energy: float, most: int | None = None) -> Tensor:
        """Return the fewest directions that hold a share of the inputs' energy, as `dominant_subspace` does.

        The share is counted with `sigma_i^2 + Delta` of the exact trace: every shrinking takes its part from the large
        directions, so that they have lost nearly all that the bound allows.

        Args:
            energy: share in [0, 1]; 0 gives no direction, 1 all of the sketch's.
            most: the most directions; all that the sketch has when ``None``.

        Returns:
            `U` `(c, k)` float32 with orthonormal columns. All `rank` directions, where these hold less than asked for;
            `held` says how much it is.

        Raises:
            ValueError: an energy outside [0, 1].
        """
        check_number("energy", energy, 0.0, 1.0)
        directions, values = self.spectrum()
        most = len(values) if most is None else min(most, len(values))
        if energy == 0.0 or not len(values):
            return directions[:, :0]
        held = (values + self.error).cumsum(0) / self.trace
        count = int((held < energy * (1 - 1e-12)).sum()) + 1
        return directions[:, : most if energy == 1.0 else min(count, most)]

    def held(self, count: int) -> float:
        """Least share of the inputs' energy that the first `count` directions of the sketch hold."""
        _, values = self.spectrum()
        return float(values[:count].sum()) / self.trace if self.trace > 0 else 1.0

    @torch.no_grad()
    def worst_case(self, basis: Tensor) -> float:
        """`max ||X D^T||_F^2 / ||D||_F^2` over updates D orthogonal to a basis, by the sketch's bound.

        Args:
            basis: `U` `(c, k)` with orthonormal columns; for k = 0 the bound of any update.

        Raises:
            ValueError: a wrong shape.
        """
        rows = self.rows.double()
        if basis.shape[1]:
            check_float("basis", basis, ("c", "k"))
            wide = basis.double()
            rows = rows - (rows @ wide) @ wide.T
        largest = float(torch.linalg.eigvalsh(rows @ rows.T)[-1]) if len(rows) else 0.0
        return max(largest, 0.0) + self.error

    @classmethod
    @torch.no_grad()
    def from_gram(cls, gram: Tensor, rank: int) -> InputSketch:
        """The sketch of `X^T X` `(c, c)`, by one symmetric eigendecomposition; its number of rows counts as 1.

        Raises:
            ValueError: no finite square matrix, or a rank that no sketch has.
        """
        check_float("gram", gram, ("c", "c"))
        check_finite("gram", gram)
        sketch = cls(gram.shape[1], rank)
        sketch._held, sketch._error = shrink_gram(gram.double(), rank)
        sketch.diagonal, sketch.count = gram.diagonal().double().clone(), 1
        return sketch

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors on the CPU that :meth:`from_state` reads: they fit into `safetensors` files and checkpoints."""
        numbers = torch.tensor([self.error, float(self.count), float(self.rank)], dtype=torch.float64)
        rows = self.rows if self._held is None else self._held
        return {"rows": rows.cpu().contiguous(), "diagonal": self.diagonal.cpu(), "numbers": numbers}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> InputSketch:
        """Undo :meth:`state_dict`.

        Raises:
            ValueError: tensors that no sketch has.
        """
        rows, diagonal, numbers = (state.get(name) for name in ("rows", "diagonal", "numbers"))
        if rows is None or diagonal is None or numbers is None or rows.dim() != 2 or numbers.shape != (3,):
            found = {name: describe(tensor) for name, tensor in state.items()}
            raise ValueError(f"expected a sketch's tensors rows (k, c), diagonal (c,) and numbers (3,), got {found}.")
        check_float("diagonal", diagonal, (rows.shape[1],))
        error, count, rank = numbers.tolist()
        sketch = cls(rows.shape[1], int(rank))
        for name, tensor in (("rows", rows), ("diagonal", diagonal), ("numbers", numbers)):
            check_finite(name, tensor)
        if len(rows) > sketch.rank:
            raise ValueError(f"rows: expected at most {sketch.rank} (the sketch's rank), got {describe(rows)}.")
        sketch._held = rows.clone() if len(rows) else None
        sketch._error, sketch.count, sketch.diagonal = error, int(count), diagonal.double().clone()
        return sketch
