"""Merging of task vectors: task arithmetic, TIES and DARE, as peft and as mergekit compute them.

A task vector is what one task added to a weight, `D = W_task - W_base`; the merged weight is `W_base` plus the merged
vector. The two programs that the field uses give one name to different computations, so both are here, by their names.

Sources: task arithmetic, Ilharco et al. (ICLR 2023, arXiv 2212.04089); TIES, Yadav et al. (NeurIPS 2023, arXiv
2306.01708); DARE, Yu et al. (ICML 2024, arXiv 2311.03099).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    check_finite,
    check_number,
    check_result,
    describe,
    is_dense,
    result_dtype,
)
from hpa_lightning.values import shown

MergingMethod = Literal["task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySign = Literal["total", "frequency"]
Rescale = Literal["density", "norm"]
MergingConvention = Literal["peft", "mergekit"]

_ELECTS_SIGNS = ("ties", "dare_ties")
_DRAWS = ("dare_linear", "dare_ties")
_SMALLEST_NORM = 1e-7  # below it mergekit leaves what DARE has kept as it is
_SMALLEST_DIVISOR = 1e-8  # below it a sum is not divided


class _Rules(NamedTuple):
    """How one program computes a method."""

    elects_weighted: bool
    """Whether signs are elected after the vectors are multiplied by their weights."""
    divides: bool
    """Whether an entry's sum is divided: by the number of vectors in it (peft), by their weights' sum (mergekit)."""
    rescale: Rescale
    keeps_one: bool
    """Whether trimming keeps at least one entry."""


def _rules(method: str, convention: str) -> _Rules:
    if convention == "peft":
        return _Rules(elects_weighted=False, divides=method in _ELECTS_SIGNS, rescale="density", keeps_one=False)
    return _Rules(elects_weighted=True, divides=method == "ties", rescale="norm", keeps_one=True)


def check_merging(
    method: str,
    weight: float | Sequence[float],
    density: float,
    majority_sign_method: str,
    rescale: str | None = None,
    convention: str = "peft",
) -> None:
    """Check the settings of `merge_task_vectors`.

    Raises:
        ValueError: an unknown method, convention or sign election, a weight that is not finite, a density outside
            (0, 1].
    """
    for name, value, known in (
        ("merging method", method, MergingMethod),
        ("majority_sign_method", majority_sign_method, MajoritySign),
        ("rescale", rescale, Rescale),
        ("convention", convention, MergingConvention),
    ):
        if value not in get_args(known) and (name, value) != ("rescale", None):
            raise ValueError(f"{name} is {shown(value)}; expected one of {list(get_args(known))}.")
    for one in weight if isinstance(weight, Sequence) else [weight]:
        check_number("weight", one)
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density is {density}; expected the share of entries that are kept, in (0, 1].")


@torch.no_grad()
def merge_task_vectors(
    vectors: Sequence[Tensor],
    method: MergingMethod = "task_arithmetic",
    weight: float | Sequence[float] = 1.0,
    density: float = 0.5,
    majority_sign_method: MajoritySign = "total",
    normalize: bool | None = None,
    rescale: Rescale | None = None,
    convention: MergingConvention = "peft",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Merge the task vectors of one weight.

    - `task_arithmetic`: the sum of weight times vector.
    - `magnitude_prune`: the same of each vector's `density` largest entries by magnitude.
    - `ties`: of those entries, the ones that have the elected sign; divided, see below.
    - `dare_linear`: as `task_arithmetic`, of a random `density` share of each vector, rescaled.
    - `dare_ties`: as `ties`, of such shares.

    Where the two conventions differ:

    | | `"peft"` (`peft.utils.merge_utils`) | `"mergekit"` |
    |---|---|---|
    | the sign of an entry is elected from | the vectors | the vectors times their weights |
    | `ties` divides an entry's sum by | the number of vectors in it | the sum of their weights |
    | `dare_ties` divides it by | the number of vectors in it | nothing |
    | what DARE keeps of a vector is | divided by `density`, as in its paper | given the vector's sum of magnitudes |
    | trimming keeps | `int(density * n)` entries | the same, and at least one |

    With weights of one size, `ties` of mergekit is that of peft with weight 1.

    Args:
        vectors: at least one, of equal shape and device, any floating dtype.
        method: see above.
        weight: of every task vector, or one number for each.
        density: share of the entries of each vector that is kept, in (0, 1]; not used by `task_arithmetic`. Entries
            are ranked within one weight, as both programs do, and of equal ones the first are kept.
        majority_sign_method: the elected sign of an entry is that of its sum (`"total"`, mergekit's `sum`) or that of
            most vectors (`"frequency"`, its `count`); positive where there is none.
        normalize: divide an entry's sum, for every method: by the number (peft) or the weights (mergekit) of the
            vectors in it, of all of them where no sign is elected. As the table says when `None`.
        rescale: `"density"` or `"norm"` (the sum of magnitudes), for the dare methods; as the table says when `None`.
        convention: whose.
        generator: draws what the dare methods drop, vector after vector, so that the shares of earlier vectors do not
            depend on later ones; torch's default one of its device when `None`.

    Returns:
        The merged vector in float32 (float64 if a vector is float64).

    Raises:
        ValueError: no vectors, unequal shapes, values that are not finite, another number of weights, or settings that
            `check_merging` refuses.

    Example:
        >>> import torch
        >>> vectors = [torch.tensor([1.0, -3.0]), torch.tensor([2.0, 1.0])]
        >>> merge_task_vectors(vectors, "ties", (0.5, 0.25), 1.0, convention="mergekit")
        tensor([ 1.3333, -3.0000])
        >>> merge_task_vectors(vectors, "ties", (0.5, 0.25), 1.0, convention="peft")
        tensor([ 0.5000, -1.5000])
    """
    check_merging(method, weight, density, majority_sign_method, rescale, convention)
    if (
        not vectors
        or not all(is_dense(vector) and vector.is_floating_point() for vector in vectors)
        or any(vector.shape != vectors[0].shape or vector.device != vectors[0].device for vector in vectors)
    ):
        found = ", ".join(map(describe, vectors)) or "nothing"
        raise ValueError(f"task vectors: got {found}; expected at least one, floating point, of one shape and device.")
    for number, vector in enumerate(vectors):
        check_finite(f"task vector {number}", vector)
    weights = list(weight) if isinstance(weight, Sequence) else [weight] * len(vectors)
    if len(weights) != len(vectors):
        raise ValueError(f"got {len(weights)} weights for {len(vectors)} task vectors; expected one for each.")
    rules = _rules(method, convention)
    divides = rules.divides if normalize is None else normalize
    dtype = result_dtype(*vectors)
    total = torch.zeros(vectors[0].shape, dtype=dtype, device=vectors[0].device)
    kept = [
        _kept(vector.to(dtype), method, density, rescale or rules.rescale, rules.keeps_one, generator)
        for vector in vectors
    ]
    elected = _elected_sign(kept, weights if rules.elects_weighted else None, majority_sign_method)
    divisor = torch.zeros_like(total)
    for vector, factor in zip(kept, weights, strict=True):
        weighted, counted = vector * factor, factor if rules.elects_weighted else 1.0
        if method in _ELECTS_SIGNS:
            agrees = (weighted if rules.elects_weighted else vector).sign() == elected
            total += weighted * agrees
            divisor += counted * agrees
        else:
            total += weighted
            divisor += counted
    if divides:
        total /= torch.where(divisor.abs() < _SMALLEST_DIVISOR, 1.0, divisor)
    return check_result("merged task vector", total)


def _elected_sign(kept: Sequence[Tensor], weights: Sequence[float] | None, method: MajoritySign) -> Tensor:
    """The sign of every entry, 1 or -1; with weights, after the vectors are multiplied by them."""
    votes = torch.zeros_like(kept[0])
    for vector, weight in zip(kept, weights or [1.0] * len(kept), strict=True):
        votes += vector * weight if method == "total" else (vector * weight).sign()
    return torch.where(votes >= 0, 1.0, -1.0)


def _kept(
    vector: Tensor, method: str, density: float, rescale: Rescale, keeps_one: bool, generator: torch.Generator | None
) -> Tensor:
    """The vector with what the method drops of it at 0."""
    if method == "task_arithmetic" or density >= 1.0 or not vector.numel():
        return vector
    if method not in _DRAWS:
        count = max(int(keeps_one), int(density * vector.numel()))
        order = torch.argsort(vector.abs().flatten(), descending=True, stable=True)
        trimmed = torch.zeros_like(vector).flatten()
        trimmed[order[:count]] = vector.flatten()[order[:count]]
        return trimmed.reshape(vector.shape)
    device = vector.device if generator is None else generator.device
    chances = torch.full(vector.shape, density, dtype=vector.dtype, device=device)
    left = vector * torch.bernoulli(chances, generator=generator).to(vector.device)
    if rescale == "density":
        return left / density
    before, after = vector.abs().sum(), left.abs().sum()
    return torch.where((before < _SMALLEST_NORM) | (after < _SMALLEST_NORM), left, left * (before / after))
