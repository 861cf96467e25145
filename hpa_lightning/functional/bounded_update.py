r"""Updates that change a layer's output on protected inputs by no more than a share of it.

What an update `D` `(r, c)` does to inputs `X` `(n, c)` is `||X D^T||_F^2 = tr(D H D^T)` with `H = X^T X`; in the
eigenvectors `u_i` of `H` and its eigenvalues, the inputs' energies `l_i`, it is `sum_i l_i ||D u_i||^2`. A budget
`tr(D H D^T) <= b` is an ellipsoid, and the update of it that is nearest to `D` (Frobenius) is

    D' = D (I + mu H)^-1,      D' u_i = D u_i / (1 + mu l_i),      mu >= 0 the least that keeps to the budget:

along each direction the update keeps a factor, the smaller the more energy the inputs have there. Where the update
keeps to the budget by itself it stays as it is. An infinite `mu` is the projection onto the null space of `H`. The rows
of LoRA's `A` take the same factors: `D' = g B (A (I + mu H)^-1)`.

The other way to keep to it is to leave the first directions for good, as many as it takes: `leave_directions`.

`mu` solves `sum_i l_i e_i / (1 + mu l_i)^2 = b` with `e_i = ||D u_i||^2`: the secular equation of trust-region methods
(Conn, Gould and Toint, Trust-Region Methods, 2000, section 7.3). `1 / sqrt` of the left side is concave and grows with
`mu`, so that Newton's iteration on it comes up to the root from below.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    cache_blocks,
    check_finite,
    check_float,
    check_number,
    describe,
    result_dtype,
)
from hpa_lightning.functional.numerics.matrix_products import float32_products_are_exact, product_of_rows
from hpa_lightning.functional.sketch import InputSketch

_NEWTON_STEPS = 12
"""From a start far outside the budget; one step from a boundary that was kept before needs two or three."""


@dataclass(frozen=True)
class InputSpectrum:
    """The directions that inputs live in, with their energy along each and outside of all.

    Args:
        directions: `U` `(c, k)` float32, orthonormal columns.
        energies: `(k + 1,)` float64: the sum of squares of `X u_i`, and last the same of a direction outside `U`.
    """

    directions: Tensor
    energies: Tensor

    @property
    def trace(self) -> float:
        """All of the inputs' energy."""
        columns, held = self.directions.shape
        return float(self.energies[:-1].sum() + self.energies[-1] * (columns - held))

    def to(self, device: torch.device | str) -> InputSpectrum:
        """The same there."""
        return InputSpectrum(self.directions.to(device), self.energies.to(device))


@torch.no_grad()
def input_spectrum(inputs: Tensor | InputSketch, certain: bool = False) -> InputSpectrum:
    """Return the spectrum of inputs, from `X^T X` or from a sketch of it.

    What a sketch has lost of the inputs' energy is known in all, `||X||_F^2 - ||B||_F^2`, and of no direction more than
    `Delta`. It is counted where it was lost: every shrinking takes the same from all of the sketch's directions, so
    that these have lost `Delta` each, or an equal part of what was lost where that is less; what remains is counted as
    spread evenly over the directions outside. So all energies together are the inputs', and a single one is an
    estimate. The upper bound, `Delta` more for every direction (`certain`), counts `c Delta` in all: several times
    what was lost where there are many more columns than rows.

    Args:
        inputs: `X^T X` `(c, c)`, symmetric positive semidefinite, or the sketch.
        certain: of a sketch the upper bound of every energy.

    Raises:
        ValueError: no finite square matrix.

    Example:
        >>> import torch
        >>> input_spectrum(torch.diag(torch.tensor([1.0, 8.0]))).energies
        tensor([8., 1., 0.], dtype=torch.float64)
    """
    if isinstance(inputs, InputSketch):
        directions, values = inputs.spectrum()
        if certain:
            return InputSpectrum(directions, torch.cat([values, values.new_zeros(1)]) + inputs.error)
        lost = max(inputs.trace - float(values.sum()), 0.0)
        each = min(inputs.error, lost / max(len(values), 1))
        outside = (lost - each * len(values)) / max(inputs.columns - len(values), 1)
        return InputSpectrum(directions, torch.cat([values + each, values.new_tensor([outside])]))
    check_float("inputs", inputs, ("c", "c"))
    check_finite("inputs", inputs)
    if inputs.shape[0] != inputs.shape[1]:
        raise ValueError(f"inputs: expected a square matrix, got {describe(inputs)}.")
    values, vectors = torch.linalg.eigh(inputs.to(torch.float64))
    values = values.flip(0).clamp(min=0.0)
    return InputSpectrum(vectors.flip(1).float().contiguous(), torch.cat([values, values.new_zeros(1)]))


@torch.no_grad()
def output_energy(weight: Tensor, inputs: Tensor | InputSketch) -> float:
    """Return `||X W^T||_F^2`, what a layer makes of inputs; of a sketch by the energies of :func:`input_spectrum`.

    Args:
        weight: `(r, c)`.
        inputs: `X^T X` `(c, c)`, or the sketch.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> import torch
        >>> output_energy(torch.tensor([[2.0, 1.0]]), torch.diag(torch.tensor([1.0, 8.0])))
        12.0
    """
    check_float("weight", weight, ("r", "c"))
    if isinstance(inputs, InputSketch):
        check_float("weight", weight, ("r", inputs.columns))
        spectrum = input_spectrum(inputs).to(weight.device)
        return float((spectrum.energies * energies_along(weight.float(), spectrum.directions)).sum())
    check_float("inputs", inputs, (weight.shape[1], weight.shape[1]))
    wide = weight.double()
    return float(((wide @ inputs.to(weight.device, torch.float64)) * wide).sum())


@torch.no_grad()
def energies_along(
    rows: Tensor, directions: Tensor, gram: Tensor | None = None, origin: Tensor | None = None
) -> Tensor:
    """Return `||D u_i||^2` of an update along each direction, and outside of them.

    Of an update that is spread over processes by rows the sum over the processes counts. What lies outside is the
    difference to `||D||^2`, so that it is as sure as 1e-6 of that: no direction outside has more energy than those in
    `directions`, and to their product the difference adds no more. One pass over a whole weight, in parts that fit the
    caches; `2 c k` operations for each row.

    Args:
        rows: `D` `(r, c)`, some rows of it, or with `gram` LoRA's whole `A` `(q, c)`.
        directions: `U` `(c, k)`, orthonormal columns.
        gram: `g^2 B^T B` `(q, q)`, so that `D^T D = A^T gram A`; None: the rows are the update's own.
        origin: `(r, c)`, what the rows are where there is no update; None: 0.

    Returns:
        `(k + 1,)` float64, the last `||D - D U U^T||^2`; no host synchronisation.

    Raises:
        ValueError: wrong shapes, or both `gram` and `origin`.

    Example:
        >>> import torch
        >>> energies_along(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]))
        tensor([ 9., 16.], dtype=torch.float64)
    """
    if isinstance(rows, Tensor) and rows.dim() == 2 and len(rows) == 0:  # a process whose share of it is empty
        return torch.zeros(directions.shape[1] + 1, dtype=torch.float64, device=directions.device)
    _check_directions(rows, directions)
    result = torch.zeros(directions.shape[1] + 1, dtype=torch.float64, device=directions.device)
    if gram is not None and origin is not None:
        raise ValueError("gram and origin: LoRA's A has no origin; expected one of the two.")
    if origin is not None:
        check_float("origin", origin, tuple(rows.shape), like=rows)
    exact = _working_dtype(directions)
    basis = directions.to(exact)
    with torch.autocast(rows.device.type, enabled=False):
        if gram is not None:
            wide, weights = rows.to(exact), gram.double()
            along = (wide @ basis).double()
            result[:-1] = (along * (weights @ along)).sum(0)
            whole = ((wide @ wide.T).double() * weights).sum()
        else:
            whole = result.new_zeros(())
            # Contiguous and transposed, once for all parts: oneDNN takes a fifth less than MKL for it.
            turned = basis.T.contiguous()
            for lines in cache_blocks(rows):
                update = rows[lines].to(exact) if origin is None else rows[lines].to(exact) - origin[lines].to(exact)
                if len(turned):
                    along = product_of_rows(update, turned) if exact == torch.float32 else update @ basis
                    result[:-1] += along.double().square().sum(0)
                whole += torch.linalg.vector_norm(update, dim=1).double().square().sum()
        result[-1] = whole - result[:-1].sum()
    return result.clamp_(min=0.0)


@torch.no_grad()
def adapter_gram(lora_b: Tensor, scaling: float) -> Tensor:
    """Return `g^2 B^T B`, `(q, q)` float64: of LoRA's B, or of some rows of it, the rest of which adds up.

    Args:
        lora_b: B `(r, q)`.
        scaling: g.

    Raises:
        ValueError: a wrong shape, or a scaling that is not finite.

    Example:
        >>> import torch
        >>> adapter_gram(torch.tensor([[1.0], [2.0]]), scaling=2.0)
        tensor([[20.]], dtype=torch.float64)
    """
    if not (isinstance(lora_b, Tensor) and lora_b.dim() == 2 and len(lora_b) == 0):  # a process whose share is empty
        check_float("lora_b", lora_b, ("r", "q"))
    check_number("scaling", scaling)
    wide = lora_b.to(_working_dtype(lora_b))
    with torch.autocast(lora_b.device.type, enabled=False):
        return (wide.T @ wide).double() * scaling**2


@torch.no_grad()
def nearest_in_budget(energies: Tensor, along: Tensor, budgets: Tensor) -> Tensor:
    """Return what each layer's update keeps along each direction, so that its action is within the budget.

    Args:
        energies: `l` `(layers, k)` float64, not negative: the inputs' energy along each direction; 0 in what is padded.
        along: `e` `(layers, k)` float64: the update's.
        budgets: `b` `(layers,)` float64, not negative: of `sum_i l_i e_i`.

    Returns:
        Factors `f` in [0, 1], `(layers, k)` float64, with `sum_i l_i e_i f_i^2 <= b`: all 1 where the update is within
        the budget already. No host synchronisation.

    Raises:
        ValueError: wrong shapes or dtypes.

    Example:
        >>> import torch
        >>> two = torch.ones(1, 2, dtype=torch.float64)
        >>> factors = nearest_in_budget(torch.tensor([[8.0, 1.0]]).double(), two, torch.tensor([2.0]).double())
        >>> factors.numpy().round(2), round(float((factors**2 * torch.tensor([[8.0, 1.0]])).sum()), 9)
        (array([[0.4 , 0.84]]), 2.0)
    """
    _check_layers(energies, along, budgets)
    mu = torch.zeros_like(budgets)
    for _ in range(_NEWTON_STEPS):
        kept = 1.0 + mu[:, None] * energies
        action = energies * along / kept**2
        total, slope = action.sum(1), 2.0 * (action * energies / kept).sum(1)
        ratio = (total / budgets.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
        step = 2.0 * total * (ratio - 1.0) / slope.clamp(min=torch.finfo(torch.float64).tiny)
        mu = mu + torch.where((total > budgets) & (budgets > 0.0), step, 0.0)
    # Nothing may act where nothing is allowed, and mu would be infinite.
    none = (budgets <= 0.0)[:, None] & (energies > 0.0)
    factors = torch.where(none, 0.0, 1.0 / (1.0 + mu[:, None] * energies))
    # Newton stops short of the root, outside the budget: the last bit of the way is one factor for all directions.
    return factors * _shrinking((energies * along * factors**2).sum(1), budgets)[:, None]


@torch.no_grad()
def leave_directions(energies: Tensor, along: Tensor, budgets: Tensor, at_least: Tensor) -> Tensor:
    """Return the fewest directions that each layer's update has to leave, largest energy first, to be in its budget.

    Args:
        energies, along, budgets: as for :func:`nearest_in_budget`; the last column is what lies outside the directions.
        at_least: `(layers,)` int64: directions that have been left before.

    Returns:
        `(layers,)` int64. All directions where that is not enough: :func:`left_factors` shrinks what remains.

    Raises:
        ValueError: wrong shapes or dtypes.

    Example:
        >>> import torch
        >>> energies = torch.tensor([[8.0, 3.0, 1.0, 0.5]]).double()
        >>> leave_directions(energies, torch.ones(1, 4).double(), torch.tensor([2.0]).double(), torch.tensor([0]))
        tensor([2])
    """
    _check_layers(energies, along, budgets)
    remaining = (energies * along).flip(1).cumsum(1).flip(1)  # the action if the directions before are left
    return (remaining[:, :-1] > budgets[:, None]).sum(1).maximum(at_least)


@torch.no_grad()
def directions_that_tell(energies: Tensor, along: Tensor, budgets: Tensor) -> Tensor:
    """Return how many first directions have to be measured to see that a layer's update is within its budget.

    With the first m measured and `||D||^2`, the action is at most that along them and the rest of `||D||^2` times the
    largest energy that the others have. The fewest are returned for which this is no more than the geometric mean of
    the action and the budget: it will be within the budget for some steps to come.

    Args:
        energies, along, budgets: as for :func:`leave_directions`.

    Returns:
        `(layers,)` int64; all columns where the action is beyond the budget already.

    Raises:
        ValueError: wrong shapes or dtypes.

    Example:
        >>> import torch
        >>> energies = torch.tensor([[8.0, 3.0, 1.0, 0.5]]).double()
        >>> directions_that_tell(energies, torch.ones(1, 4).double(), torch.tensor([16.0]).double())
        tensor([2])
    """
    _check_layers(energies, along, budgets)
    actions = energies * along
    measured = actions.cumsum(1) - actions
    others = energies.flip(1).cummax(1).values.flip(1) * along.flip(1).cumsum(1).flip(1)
    limit = (actions.sum(1) * budgets).sqrt()
    tells = (measured + others <= limit[:, None]).to(torch.int64)
    count = energies.shape[1]
    return torch.where(tells.any(1) & (actions.sum(1) <= budgets), tells.argmax(1), count)


@torch.no_grad()
def left_factors(energies: Tensor, along: Tensor, budgets: Tensor, counts: Tensor) -> Tensor:
    """Return factors as :func:`nearest_in_budget`: 0 for the first `counts` directions, one for all that remains.

    That one is 1, but where even the remainder is not within the budget.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3).double()
        >>> left_factors(one, one, torch.tensor([0.5]).double(), torch.tensor([1]))
        tensor([[0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    _check_layers(energies, along, budgets)
    stays = torch.arange(energies.shape[1], device=energies.device) >= counts[:, None]
    return stays * _shrinking((energies * along * stays).sum(1), budgets)[:, None]


def _shrinking(action: Tensor, budgets: Tensor) -> Tensor:
    """The factor of an update that brings its action into the budget; 1 where it is."""
    least = torch.finfo(torch.float64).tiny
    return torch.where(action > budgets, (budgets / action.clamp(min=least)).sqrt(), 1.0)


def _check_directions(rows: Tensor, directions: Tensor) -> None:
    check_float("rows", rows, ("r", "c"))
    if not (isinstance(directions, Tensor) and directions.shape == (rows.shape[1], 0)):  # inputs may have none
        check_float("directions", directions, (rows.shape[1], "k"), like=rows)


def _check_layers(energies: Tensor, along: Tensor, budgets: Tensor) -> None:
    check_float("energies", energies, ("layers", "k"))
    check_float("along", along, tuple(energies.shape), like=energies)
    check_float("budgets", budgets, (len(energies),), like=energies)


@torch.no_grad()
def damp_directions_(trained: Tensor, origin: Tensor | None, directions: Tensor, factors: Tensor) -> None:
    """Multiply what an update does along each direction by a factor, in place.

    Args:
        trained: the weight `(r, c)`, or LoRA's `A` `(q, c)`, or some rows of them.
        origin: the same where there is no update; None: 0, LoRA's `A`.
        directions: `U` `(c, k)`, orthonormal columns.
        factors: `(k + 1,)`, the last for what lies outside of `U`.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[2.0, 3.0]])
        >>> damp_directions_(weight, torch.ones(1, 2), torch.tensor([[1.0], [0.0]]), torch.tensor([0.5, 1.0]))
        >>> weight
        tensor([[1.5000, 3.0000]])
    """
    if isinstance(trained, Tensor) and trained.dim() == 2 and len(trained) == 0:
        return  # a process whose share of a sharded tensor is empty
    _check_directions(trained, directions)
    check_float("factors", factors, (directions.shape[1] + 1,), like=trained)
    if origin is not None:
        check_float("origin", origin, tuple(trained.shape), like=trained)
    exact = _working_dtype(directions)
    basis, kept = directions.to(exact), factors.to(exact)
    with torch.autocast(trained.device.type, enabled=False):
        for lines in cache_blocks(trained):
            rows = trained[lines]
            update = rows.to(exact, copy=True) if origin is None else rows.to(exact) - origin[lines].to(exact)
            along = (update @ basis) * (kept[:-1] - kept[-1])
            damped = update.mul_(kept[-1]).addmm_(along, basis.T)
            rows.copy_(damped if origin is None else damped.add_(origin[lines]))


def _working_dtype(like: Tensor) -> torch.dtype:
    """What products are computed in."""
    return result_dtype(like) if float32_products_are_exact(like.device) else torch.float64
