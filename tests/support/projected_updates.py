"""Weights, updates and masks for projections, and the cosine that they are held to."""

from __future__ import annotations

import numpy as np
import torch
from support import hpa_reference as ref


def make(
    seed: int, r: int, c: int, size: float, dtype: torch.dtype, share: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    old = torch.from_numpy(rng.standard_normal((r, c))).to(dtype)
    new = (old.double() + torch.from_numpy(size * rng.standard_normal((r, c)))).to(dtype)
    return new, old, torch.from_numpy(rng.random(c) < share)


BOUND = 1e-6


def cosine(weight: torch.Tensor, weight_prev: torch.Tensor) -> float:
    """|<D, W_prev>| / (||D|| ||W_prev||) of the stored values, in float64."""
    old = ref.array(weight_prev)
    delta = ref.array(weight) - old
    norms = np.linalg.norm(delta) * np.linalg.norm(old)
    return abs((delta * old).sum()) / norms if norms > 0 else 0.0
