"""Focus of the input columns, or of the output rows, of a weight: how much an update of each costs a set of inputs.

`focus_j = mean_i D_ij^2 / [H^-1]_jj`. With the Hessian of safety inputs it is the safety focus `eps`, with
that of task inputs the task focus `zeta`.

What is printed and what is not: the importance that motivates the method, `w_ij^2 / [H^-1]_jj`, and scores that are
means of squared changes over `i`. Public summaries of the published version disagree on whether the scores divide by
the diagonal or multiply with it, and all of them write `[H^-1]_ii` in the scores where the importance has `jj`.

Decision: division, and `jj`: the optimal-brain-surgeon saliency, indexed by input column. Read literally for weights
stored as `(in, out)`, `ii` means that every input is weighed by its own inverse Hessian and that a "column" is an
output unit, a row of a PyTorch weight: `focus_i = mean_j D_ij^2 / [H^-1]_jj`, :func:`row_focus`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpa_lightning.functional.merging import LoraUpdate
from hpa_lightning.functional.numerics.checks import blocks, check_finite, check_float, check_number, check_result
from hpa_lightning.functional.numerics.inner_products import column_square_sums


@torch.no_grad()
def column_energy(delta: Tensor) -> Tensor:
    """Compute the mean square of every column of a dense update.

    Args:
        delta: update `D = W_new - W_prev`, `(out_features, in_features)`, any floating dtype.

    Returns:
        `(in_features,)` float64.

    Raises:
        ValueError: wrong shape or non-finite values.

    Example:
        >>> import torch
        >>> column_energy(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        tensor([5., 2.], dtype=torch.float64)
    """
    check_float("delta", delta, ("r", "c"))
    energy = column_square_sums(delta) / delta.shape[0]
    if not bool(torch.isfinite(energy).all()):
        check_finite("delta", delta)
        check_result("column energy", energy)
    return energy


@torch.no_grad()
def lora_column_energy(lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Compute the mean square of every column of the update `scaling * B A` without forming it.

    `sum_i D_ij^2 = g^2 [A^T (B^T B) A]_jj`, at a cost of `O(q^2 (r + c))` instead of `O(r c q)`.

    Args:
        lora_a: `A`, `(q, in_features)`, any floating dtype.
        lora_b: `B`, `(out_features, q)`, any floating dtype.
        scaling: LoRA's factor `g` (`lora_alpha / q` in peft).

    Returns:
        `(in_features,)` float64.

    Raises:
        ValueError: wrong shapes or non-finite values.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]])
        >>> lora_column_energy(a, b, 0.5)
        tensor([1.2500, 5.0000], dtype=torch.float64)
        >>> column_energy(0.5 * b @ a)
        tensor([1.2500, 5.0000], dtype=torch.float64)
    """
    _check_factors(lora_a, lora_b, scaling)
    a, b = lora_a.to(torch.float64), lora_b.to(torch.float64)
    # ||B x|| = ||R x|| for the R factor of B: squaring last, not in B^T B, keeps small columns accurate.
    triangular = torch.linalg.qr(b, mode="r").R
    return check_result("column energy", (triangular @ a).square_().sum(0) * (scaling**2 / b.shape[0]))


@torch.no_grad()
def column_focus(energy: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Compute the focus of every column, `energy_j / [H^-1]_jj`.

    Args:
        energy: mean squares of the update's columns, `(in_features,)`; of `column_energy` or `lora_column_energy`.
        inverse_diagonal: `diag(H^-1)`, `(in_features,)`, positive.

    Returns:
        `(in_features,)` in the dtype of `inverse_diagonal`, not negative.

    Raises:
        ValueError: wrong shapes, non-finite values, or `inverse_diagonal` not positive.

    Source: HPA (arXiv 2511.20158), step 1.

    Example:
        >>> import torch
        >>> column_focus(column_energy(torch.tensor([[1.0, 0.0], [3.0, 2.0]])), torch.tensor([0.5, 2.0]))
        tensor([10.,  1.])
    """
    check_float("energy", energy, ("c",))
    check_finite("energy", energy)
    _check_diagonal(inverse_diagonal, energy.shape[0], energy)
    return check_result("column focus", (energy / inverse_diagonal).to(inverse_diagonal.dtype))


@torch.no_grad()
def row_focus(delta: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Compute the focus of every output row of a dense update, `mean_j D_ij^2 / [H^-1]_jj`.

    Args:
        delta: update `D = W_new - W_prev`, `(out_features, in_features)`, any floating dtype.
        inverse_diagonal: `diag(H^-1)`, `(in_features,)`, positive.

    Returns:
        `(out_features,)` in the dtype of `inverse_diagonal`, not negative.

    Raises:
        ValueError: wrong shapes, non-finite values, or `inverse_diagonal` not positive.

    Source: the reading `[H^-1]_ii` of HPA's scores (arXiv 2511.20158, step 1), see above.

    Example:
        >>> import torch
        >>> row_focus(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([0.5, 2.0]))
        tensor([ 1., 10.])
    """
    check_float("delta", delta, ("r", "c"))
    check_finite("delta", delta)
    _check_diagonal(inverse_diagonal, delta.shape[1], delta)
    divisor = inverse_diagonal.to(torch.float64)
    focus = torch.empty(delta.shape[0], dtype=torch.float64, device=delta.device)
    for lines in blocks(*delta.shape):
        focus[lines] = (delta[lines].to(torch.float64).square() / divisor).mean(1)
    return check_result("row focus", focus.to(inverse_diagonal.dtype))


@torch.no_grad()
def lora_row_focus(lora_a: Tensor, lora_b: Tensor, scaling: float, inverse_diagonal: Tensor) -> Tensor:
    """Compute the focus of every output row of the update `scaling * B A` without forming it.

    `sum_j D_ij^2 / h_j = g^2 || S^T b_i ||^2` with `S = A diag(h)^-1/2` and `b_i` row i of B, at a cost of
    `O(q^2 (r + c))`.

    Args:
        lora_a: `A`, `(q, in_features)`, any floating dtype.
        lora_b: `B`, `(out_features, q)`, any floating dtype.
        scaling: LoRA's factor `g`.
        inverse_diagonal: `h = diag(H^-1)`, `(in_features,)`, positive.

    Returns:
        `(out_features,)` in the dtype of `inverse_diagonal`, not negative.

    Raises:
        ValueError: wrong shapes, non-finite values, or `inverse_diagonal` not positive.

    Example:
        >>> import torch
        >>> a, b, diagonal = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 2.0])
        >>> lora_row_focus(a, b, 0.5, diagonal), row_focus(0.5 * b @ a, diagonal)
        (tensor([0.5000, 4.5000]), tensor([0.5000, 4.5000]))
    """
    _check_factors(lora_a, lora_b, scaling)
    _check_diagonal(inverse_diagonal, lora_a.shape[1], lora_a)
    weighed = lora_a.to(torch.float64) / inverse_diagonal.to(torch.float64).sqrt()
    # ||S^T b|| = ||R b|| for the R factor of S^T: squaring last keeps small rows accurate.
    triangular = torch.linalg.qr(weighed.T, mode="r").R
    squares = (lora_b.to(torch.float64) @ triangular.T).square_().sum(1)
    focus = (squares * (scaling**2 / lora_a.shape[1])).to(inverse_diagonal.dtype)
    return check_result("row focus", focus)


def update_focus(update: Tensor | LoraUpdate, inverse_diagonals: Sequence[Tensor], units: str) -> list[Tensor]:
    """Compute the focus of every column, or row, of an update on several sets of inputs.

    Args:
        update: dense `(out_features, in_features)`, or the adapter that stands for it.
        inverse_diagonals: `diag(H^-1)` of each set, `(in_features,)`, positive.
        units: `"columns"` or `"rows"`.

    Returns:
        For each set `(in_features,)`, or `(out_features,)` for rows; see `column_focus` and `row_focus`.

    Raises:
        ValueError: see there.
    """
    if isinstance(update, LoraUpdate):
        a, b, g = update.lora_a, update.lora_b, update.scaling
        if units == "rows":
            return [lora_row_focus(a, b, g, diagonal) for diagonal in inverse_diagonals]
        energy = lora_column_energy(a, b, g)
    elif units == "rows":
        return [row_focus(update, diagonal) for diagonal in inverse_diagonals]
    else:
        energy = column_energy(update)
    return [column_focus(energy, diagonal) for diagonal in inverse_diagonals]


def _check_factors(lora_a: Tensor, lora_b: Tensor, scaling: float) -> None:
    check_float("lora_a", lora_a, ("q", "c"))
    check_float("lora_b", lora_b, ("r", lora_a.shape[0]), like=lora_a)
    check_number("scaling", scaling)
    check_finite("lora_a", lora_a)
    check_finite("lora_b", lora_b)


def _check_diagonal(inverse_diagonal: Tensor, columns: int, like: Tensor) -> None:
    check_float("inverse_diagonal", inverse_diagonal, (columns,), like=like)
    check_finite("inverse_diagonal", inverse_diagonal)
    if bool((inverse_diagonal <= 0).any()):
        raise ValueError(
            f"inverse_diagonal: expected positive values (the diagonal of an inverse Hessian), "
            f"got a minimum of {float(inverse_diagonal.min()):g}."
        )
