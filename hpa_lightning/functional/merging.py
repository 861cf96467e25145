"""Merging of two weights, along a line or an arc, and the update that a task or its adapter stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import (
    blocks,
    check_finite,
    check_float,
    check_number,
    check_result,
    result_dtype,
)
from hpa_lightning.functional.numerics.matrix_products import float32_products_are_exact


@torch.no_grad()
def merge_linearly(weight: Tensor, reference: Tensor, share: float) -> Tensor:
    """Compute `(1 - share) * weight + share * reference`.

    Share 0 gives `weight`, share 1 gives `reference`, and equal entries stay as they are, all exactly. Arithmetic is
    float64, block of rows by block of rows, with one cast when the result is written.

    Args:
        weight: the task's weight, `(out_features, in_features)`, any floating dtype.
        reference: the safe weight, same shape, any floating dtype.
        share: share of the reference, in [0, 1].

    Returns:
        `(out_features, in_features)` in the dtype of `reference`.

    Raises:
        ValueError: wrong shapes, a share outside [0, 1], or non-finite values.

    Source: arXiv 2410.07571 (ICLR 2025), weight merging of a task-tuned and a safety-tuned model.

    Example:
        >>> import torch
        >>> merge_linearly(torch.tensor([[4.0, 1.0]]), torch.tensor([[0.0, 1.0]]), 0.25)
        tensor([[3., 1.]])
    """
    check_float("weight", weight, ("r", "c"))
    check_float("reference", reference, tuple(weight.shape), like=weight)
    check_number("share", share, 0.0, 1.0)
    check_finite("weight", weight)
    check_finite("reference", reference)
    merged = torch.empty_like(reference)
    for lines in blocks(*weight.shape):
        merged[lines] = torch.lerp(
            weight[lines].to(torch.float64), reference[lines].to(torch.float64), float(share)
        ).to(reference.dtype)
    return check_result("merged weight", merged)


_COLLINEAR = 0.9995
_SMALLEST_LENGTH = 1e-8


@torch.no_grad()
def merge_spherically(weight: Tensor, reference: Tensor, share: float) -> Tensor:
    """Compute the spherical interpolation (SLERP) of two weights, each taken as one vector.

    `(sin((1 - share) t) weight + sin(share t) reference) / sin(t)`, `t` being the angle between them. As mergekit has
    it: where the cosine's magnitude is above 0.9995 (an angle below 1.8 degrees, the rule between a model and a short
    tuning of it) the two are merged linearly, and a vector shorter than 1e-8 counts as at a right angle. Share 0 gives
    `weight` and share 1 `reference`, exactly. Sums are float64, with one cast when the result is written.

    Args:
        weight: the task's weight, `(out_features, in_features)`, any floating dtype.
        reference: the safe weight, same shape, any floating dtype.
        share: share of the angle towards the reference, in [0, 1]; mergekit's `t` with `weight` as its base model.

    Returns:
        `(out_features, in_features)` in the dtype of `reference`.

    Raises:
        ValueError: wrong shapes, a share outside [0, 1], or non-finite values.

    Source: Shoemake, Animating rotation with quaternion curves (SIGGRAPH 1985); mergekit's `slerp`.

    Example:
        >>> import torch
        >>> merge_spherically(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 0.5)
        tensor([[1.4142, 1.4142]])
    """
    check_float("weight", weight, ("r", "c"))
    check_float("reference", reference, tuple(weight.shape), like=weight)
    check_number("share", share, 0.0, 1.0)
    check_finite("weight", weight)
    check_finite("reference", reference)
    products = torch.zeros(3, dtype=torch.float64, device=weight.device)
    for lines in blocks(*weight.shape):
        one, other = weight[lines].to(torch.float64), reference[lines].to(torch.float64)
        products += torch.stack([(one * one).sum(), (other * other).sum(), (one * other).sum()])
    lengths = products[:2].sqrt()
    lengths = torch.where(lengths > _SMALLEST_LENGTH, lengths, 1.0)
    cosine = float((products[2] / lengths[0] / lengths[1]).clamp(-1.0, 1.0))
    if abs(cosine) > _COLLINEAR:
        return merge_linearly(weight, reference, share)
    angle = math.acos(cosine)
    first, second = (math.sin(part * angle) / math.sin(angle) for part in (1.0 - share, float(share)))
    merged = torch.empty_like(reference)
    for lines in blocks(*weight.shape):
        arc = first * weight[lines].to(torch.float64) + second * reference[lines].to(torch.float64)
        merged[lines] = arc.to(reference.dtype)
    return check_result("merged weight", merged)


@torch.no_grad()
def lora_update(lora_a: Tensor, lora_b: Tensor, scaling: float = 1.0) -> Tensor:
    """Compute the update that a LoRA adapter stands for, `scaling * B A`.

    Products are of float32, or of float64 where those of float32 are set to a lower precision
    (`torch.set_float32_matmul_precision`, `torch.backends.cuda.matmul.fp32_precision`): rounded to TF32 or bfloat16,
    the merged weight would give other outputs than the adapter. Autocast does not reach them.

    Args:
        lora_a: `A`, `(rank, in_features)`, any floating dtype.
        lora_b: `B`, `(out_features, rank)`, any floating dtype.
        scaling: of the adapter.

    Returns:
        `(out_features, in_features)` float32.

    Raises:
        ValueError: wrong shapes or a scaling that is not finite.

    Source: Hu et al., LoRA (ICLR 2022), section 4.1.

    Example:
        >>> import torch
        >>> lora_update(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]]), 0.5)
        tensor([[0.5000, 1.0000],
                [1.5000, 3.0000]])
    """
    check_float("lora_a", lora_a, ("q", "c"))
    check_float("lora_b", lora_b, ("r", lora_a.shape[0]), like=lora_a)
    check_number("scaling", scaling)
    wide = torch.float32 if float32_products_are_exact(lora_a.device) else torch.float64
    with torch.autocast(lora_a.device.type, enabled=False):
        return scaling * (lora_b.to(wide) @ lora_a.to(wide)).float()


@dataclass(frozen=True)
class LoraUpdate:
    """A task's update as an adapter holds it: `D = scaling * B A`.

    Args:
        lora_a: `A`, `(rank, in_features)`, any floating dtype.
        lora_b: `B`, `(out_features, rank)`, or some rows of it, any floating dtype.
        scaling: LoRA's factor.
    """

    lora_a: Tensor
    lora_b: Tensor
    scaling: float


@torch.no_grad()
def dense_update(weight_prev: Tensor, weight_new: Tensor) -> Tensor:
    """Compute `D = W_new - W_prev`, float32 (float64 where a weight is).

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: weight after it, same shape, any floating dtype.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> import torch
        >>> dense_update(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16), torch.tensor([[1.5, 2.0]]))
        tensor([[0.5000, 0.0000]])
    """
    check_float("weight_prev", weight_prev, ("r", "c"))
    check_float("weight_new", weight_new, tuple(weight_prev.shape), like=weight_prev)
    wide = result_dtype(weight_prev, weight_new)
    return weight_new.to(wide) - weight_prev.to(wide)
