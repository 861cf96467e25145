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
of twice the rows is shrunk by its (l+1)-th eigenvalue, so that `l` rows stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hpa_lightning.functional._checks import check_finite, check_float, check_number, check_result, describe, is_dense


class InputSketch:
    r"""A Frequent Directions sketch of a layer's inputs; see the module for what it guarantees.

    Memory: twice `rank` rows of `columns` float32 numbers while inputs come, `rank` of them in between. Operations for
    `rank` new rows: `6 rank^2 columns` and an eigendecomposition of `2 rank` columns, in float64.

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
        self.trace = 0.0
        """`||X||_F^2`, exact."""
        self.count = 0
        """Rows seen; of merged sketches, all of theirs."""
        self._held: Tensor | None = None  # (<= l, c): the shrunk rows, or the first l rows as they came
        self._waiting: list[Tensor] = []  # fewer than l rows in all

    @property
    def rows(self) -> Tensor:
        """`B`, `(k, c)` float32 with k <= `rank`, on the inputs' device; no row before the first update."""
        self._settle(self.rank)
        return torch.empty(0, self.columns) if self._held is None else self._held

    @property
    def error(self) -> float:
        """`Delta`: no direction's energy is underestimated by more. Like `rows`, it shrinks what waits first."""
        self._settle(self.rank)
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
        self._add(rows)

    def _add(self, rows: Tensor) -> None:
        for part in rows.split(self.rank):
            part = part.to(torch.float32, copy=True)
            self.trace += float(part.double().square().sum())
            self._waiting.append(part)
            if sum(map(len, self._waiting)) >= self.rank:
                self._settle(self.rank)

    def _settle(self, rank: int) -> None:
        """Shrink what is held and what waits to `rank` rows, if it is more."""
        parts = ([] if self._held is None else [self._held]) + self._waiting
        if not self._waiting and (self._held is None or len(self._held) <= rank):
            return
        self._waiting = []
        self._held, lost = shrink_rows(torch.cat(parts), rank)
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
        if weight > 0 and len(rows):
            trace = self.trace + weight * other.trace
            device = rows.device if self._held is None else self._held.device
            self._add(rows.to(device) * weight**0.5)
            self._settle(self.rank)
            self.trace = trace
            self._error += weight * other.error
        self.count += other.count

    @torch.no_grad()
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Directions and energies of the sketch: `(V, sigma^2)`, `(c, k)` float32 and `(k,)` float64, largest first."""
        rows = self.rows.double()
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        live = int((values > values[:1] * 1e-14).sum()) if len(values) else 0
        directions = rows.T @ (vectors[:, :live] / values[:live].sqrt())
        return torch.linalg.qr(directions).Q.float() if live else directions.float(), values[:live]

    def basis(self, energy: float) -> Tensor:
        """Return the fewest directions that hold a share of the inputs' energy, as `dominant_subspace` does.

        The share is counted with `sigma_i^2 + Delta` of the exact trace: every shrinking takes its part from the large
        directions, so that they have lost nearly all that the bound allows.

        Args:
            energy: share in [0, 1]; 0 gives no direction, 1 all of the sketch's.

        Returns:
            `U` `(c, k)` float32 with orthonormal columns. All `rank` directions, where these hold less than asked for;
            `held` says how much it is.

        Raises:
            ValueError: an energy outside [0, 1].
        """
        check_number("energy", energy, 0.0, 1.0)
        directions, values = self.spectrum()
        if energy == 0.0 or not len(values):
            return directions[:, :0]
        held = (values + self.error).cumsum(0) / self.trace
        count = int((held < energy * (1 - 1e-12)).sum()) + 1
        return directions[:, : len(values) if energy == 1.0 else min(count, len(values))]

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

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors on the CPU that :meth:`from_state` reads: they fit into `safetensors` files and checkpoints."""
        numbers = torch.tensor([self.error, self.trace, float(self.count), float(self.rank)], dtype=torch.float64)
        return {"rows": self.rows.cpu().contiguous(), "numbers": numbers}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> InputSketch:
        """Undo :meth:`state_dict`.

        Raises:
            ValueError: tensors that no sketch has.
        """
        rows, numbers = state.get("rows"), state.get("numbers")
        if rows is None or numbers is None or rows.dim() != 2 or numbers.shape != (4,):
            found = {name: describe(tensor) for name, tensor in state.items()}
            raise ValueError(f"expected a sketch's tensors rows (k, c) and numbers (4,), got {found}.")
        error, trace, count, rank = numbers.tolist()
        sketch = cls(rows.shape[1], int(rank))
        check_finite("rows", rows)
        sketch._held = rows.float() if len(rows) else None
        sketch._error, sketch.trace, sketch.count = error, trace, int(count)
        return sketch


@torch.no_grad()
def shrink_rows(rows: Tensor, rank: int) -> tuple[Tensor, float]:
    """Shrink rows `(m, c)` to `rank` of them: the step of Frequent Directions.

    All eigenvalues of `rows^T rows` become smaller by the (rank + 1)-th of them, or 0.

    Returns:
        `(B, delta)` with `0 <= rows^T rows - B^T B <= delta I` up to rounding; the rows as they are, with delta 0,
        where there are no more than `rank`.

    Source: Liberty (KDD 2013), algorithm 1.

    Example:
        >>> import torch
        >>> shrink_rows(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rank=2)[1]
        1.0
    """
    if len(rows) <= rank:
        return rows, 0.0
    wide = rows.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    delta = values[rank]
    kept, directions = values[:rank], vectors[:, :rank]
    scale = torch.where(
        kept > 0, ((kept - delta).clamp(min=0.0) / kept.clamp(min=torch.finfo(kept.dtype).tiny)).sqrt(), 0.0
    )
    return ((directions * scale).T @ wide).to(rows.dtype), float(delta)
