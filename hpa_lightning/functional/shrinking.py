"""The step of Frequent Directions: many rows become few, and what is lost is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.matrix_products import float32_products_are_exact, product_of_rows

# Columns of a product that is summed in float32 before the sum moves on in float64.
_FLOAT32_COLUMNS = 1024


@torch.no_grad()
def shrink_rows(rows: Tensor, rank: int) -> tuple[Tensor, float]:
    """Shrink rows `(m, c)` to `rank` of them: the step of Frequent Directions.

    All eigenvalues of `rows^T rows` become smaller by the (rank + 1)-th of them, or 0. For float32 rows the products
    are float32 (`2 m^2 c` and `2 rank m c` operations), the eigendecomposition of m columns is float64.

    Returns:
        `(B, delta)` with `0 <= rows^T rows - B^T B <= delta I` up to rounding (1e-7 of the largest eigenvalue); the
        rows as they are, with delta 0, where there are no more than `rank`.

    Source: Liberty (KDD 2013), algorithm 1.

    Example:
        >>> import torch
        >>> shrink_rows(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rank=2)[1]
        1.0
    """
    if len(rows) <= rank:
        return rows, 0.0
    kept, directions, delta = _largest(gram_of_rows(rows), rank)
    scale = torch.where(
        kept > 0, ((kept - delta).clamp(min=0.0) / kept.clamp(min=torch.finfo(kept.dtype).tiny)).sqrt(), 0.0
    )
    turn = (directions * scale).T
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype == torch.float32 and float32_products_are_exact(rows.device):
            return torch.mm(turn.float(), rows), delta
        return (turn @ rows.double()).to(rows.dtype), delta


@torch.no_grad()
def shrink_gram(gram: Tensor, rank: int) -> tuple[Tensor, float]:
    """What :func:`shrink_rows` makes of rows `(m, c)`, from `rows^T rows` `(c, c)` float64: `(B, delta)`, B float32.

    Example:
        >>> import torch
        >>> shrink_gram(torch.diag(torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)), rank=2)[0].abs()
        tensor([[2.8284, 0.0000, 0.0000],
                [0.0000, 1.7321, 0.0000]])
    """
    values, directions, delta = _largest(gram, rank)
    live = values > values[:1] * 1e-14
    return (directions * (values - delta).clamp(min=0.0).sqrt()).T[live].float(), delta


def _largest(gram: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The `rank` largest eigenvalues, their vectors as columns, and the next eigenvalue, or 0."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    return values[:rank], vectors[:, :rank], float(values[rank]) if rank < len(values) else 0.0


@torch.no_grad()
def gram_of_rows(rows: Tensor) -> Tensor:
    """`rows rows^T`, `(m, m)` float64; of float32 rows, 1024 columns at a time are summed in float32."""
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype != torch.float32 or not float32_products_are_exact(rows.device):
            wide = rows.double()
            return wide @ wide.T
        result = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
        for part in rows.split(_FLOAT32_COLUMNS, dim=1):
            packed = part.contiguous()  # oneDNN is very slow on parts of rows
            result += product_of_rows(packed, packed)
        return result


@torch.no_grad()
def rounding_error(rows: Tensor, rounded: Tensor) -> float:
    """How far `rounded^T rounded` lies below `rows^T rows` at most: the largest eigenvalue of the difference.

    Args:
        rows: B, `(l, c)`.
        rounded: `B_q`, same shape, any floating dtype.

    Example:
        >>> import torch
        >>> rounding_error(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        3.0
    """
    both = torch.cat([rows.double(), rounded.double()])
    values, vectors = torch.linalg.eigh(both @ both.T)
    root = vectors * values.clamp(min=0.0).sqrt()  # both both^T = root root^T, and the difference is both^T J both
    signs = torch.ones(len(both), 1, dtype=torch.float64, device=both.device)
    signs[len(rows) :] = -1.0
    return max(float(torch.linalg.eigvalsh(root.T @ (signs * root))[-1]), 0.0) if len(rows) else 0.0
