"""Merging of task vectors through peft's functions.

A task vector is what one task added to a weight.

Sources: task arithmetic, Ilharco et al. (ICLR 2023, arXiv 2212.04089); TIES, Yadav et al. (NeurIPS 2023, arXiv
2306.01708); DARE, Yu et al. (ICML 2024, arXiv 2311.03099).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from peft.utils import merge_utils
from torch import Tensor

MergingMethod = Literal["task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySign = Literal["total", "frequency"]
Rescale = Literal["density", "norm"]

_ELECTS_SIGNS = ("ties", "dare_ties")


def check_merging(
    method: str, weight: float, density: float, majority_sign_method: str, rescale: str = "density"
) -> None:
    """Check the settings of :func:`merge_task_vectors`.

    Raises:
        ValueError: an unknown method or sign election, a weight that is not finite, a density outside (0, 1].
    """
    if method not in get_args(MergingMethod):
        raise ValueError(f"merging method is {method!r}; expected one of {list(get_args(MergingMethod))}.")
    if majority_sign_method not in get_args(MajoritySign):
        raise ValueError(
            f"majority_sign_method is {majority_sign_method!r}; expected one of {list(get_args(MajoritySign))}."
        )
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale is {rescale!r}; expected one of {list(get_args(Rescale))}.")
    if not abs(weight) < float("inf"):
        raise ValueError(f"weight is {weight}; expected a finite factor of the task vectors.")
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density is {density}; expected the share of entries that are kept, in (0, 1].")


@torch.no_grad()
def merge_task_vectors(
    vectors: Sequence[Tensor],
    method: MergingMethod = "task_arithmetic",
    weight: float = 1.0,
    density: float = 0.5,
    majority_sign_method: MajoritySign = "total",
    normalize: bool | None = None,
    rescale: Rescale = "density",
) -> Tensor:
    """Merge the task vectors of one weight.

    - ``task_arithmetic``: the sum.
    - ``magnitude_prune``: the sum of their ``density`` largest entries by magnitude.
    - ``ties``: of those entries, the mean of the ones that have the elected sign.
    - ``dare_linear``: the sum of random ``density`` shares, divided by ``density``.
    - ``dare_ties``: random shares as in DARE, merged as in TIES.

    Everything is multiplied by ``weight``. The dare methods draw from torch's default generator of the vectors' device,
    vector after vector, so that the shares of earlier vectors do not depend on later ones.

    Args:
        vectors: at least one, of equal shape and device, any floating dtype.
        method: see above.
        weight: factor of every task vector.
        density: share of the entries of each vector that is kept, in (0, 1]; not used by ``task_arithmetic``.
            Decision: entries are ranked within one weight, as in peft, not over the model.
        majority_sign_method: the elected sign of an entry is that of its sum (``"total"``) or that of most vectors
            (``"frequency"``); positive where there is none.
        normalize: divide an entry's sum by the number of vectors in it (of all, where no sign is elected). As peft has
            it when ``None``: for ``ties`` and ``dare_ties``, and not otherwise. mergekit sums in ``dare_ties``.
        rescale: what the dare methods do with what is left of a vector: divide it by ``density``, as in the source, or
            (``"norm"``) give it the vector's sum of magnitudes, as mergekit does.

    Returns:
        The merged vector in fp32 (fp64 if a vector is fp64).

    Raises:
        ValueError: no vectors, unequal shapes, or settings that :func:`check_merging` refuses.
    """
    check_merging(method, weight, density, majority_sign_method, rescale)
    if not vectors or any(vector.shape != vectors[0].shape or not vector.is_floating_point() for vector in vectors):
        raise ValueError(
            f"got task vectors of shapes {[tuple(vector.shape) for vector in vectors]} and dtypes "
            f"{[str(vector.dtype) for vector in vectors]}; expected at least one, floating point and of one shape."
        )
    dtype = torch.float64 if any(vector.dtype == torch.float64 for vector in vectors) else torch.float32
    tensors = [vector.to(dtype) for vector in vectors]
    if normalize not in (None, method in _ELECTS_SIGNS) or (rescale == "norm" and method.startswith("dare")):
        elects = method in _ELECTS_SIGNS
        mean = elects if normalize is None else normalize
        return weight * _mixed(tensors, method, density, majority_sign_method if elects else None, mean, rescale)
    weights = torch.full((len(tensors),), float(weight), dtype=dtype, device=tensors[0].device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density .* no pruning will be performed")
        if method == "task_arithmetic":
            return merge_utils.task_arithmetic(tensors, weights)
        if method == "magnitude_prune":
            return merge_utils.magnitude_prune(tensors, weights, density)
        if method == "dare_linear":
            return merge_utils.dare_linear(tensors, weights, density)
        merge = merge_utils.ties if method == "ties" else merge_utils.dare_ties
        return merge(tensors, weights, density, majority_sign_method)


def _mixed(
    tensors: Sequence[Tensor],
    method: MergingMethod,
    density: float,
    sign: MajoritySign | None,
    mean: bool,
    rescale: Rescale,
) -> Tensor:
    """The pruned vectors' sum, or mean, over those that have the elected sign where one is elected."""
    pruned = torch.stack([_pruned(tensor, method, density, rescale) for tensor in tensors])
    agree = torch.ones_like(pruned, dtype=torch.bool)
    if sign is not None:
        agree = merge_utils.calculate_majority_sign_mask(pruned, sign)
    total = (pruned * agree).sum(dim=0)
    return total / agree.sum(dim=0).clamp(min=1) if mean else total


def _pruned(tensor: Tensor, method: MergingMethod, density: float, rescale: Rescale) -> Tensor:
    if method == "task_arithmetic" or density >= 1.0:
        return tensor
    if not method.startswith("dare"):
        return merge_utils.prune(tensor, density, "magnitude")
    if rescale == "density":
        return merge_utils.prune(tensor, density, "random", rescale=True)
    left = merge_utils.prune(tensor, density, "random", rescale=False)
    size = left.abs().sum()
    return torch.where(size > 0, left * (tensor.abs().sum() / size), left)
