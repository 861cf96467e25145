"""Weights and correlated inputs of a layer, drawn by hypothesis or a seed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from support import hpa_reference as ref
from support.surgeon_reference import damped

cases = settings(ref.cases, max_examples=120)

dtypes = st.sampled_from(ref.FLOATS)


def correlated(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    rank = max(1, c // 8)
    hidden = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, c)) / rank**0.5
    return hidden + 0.3 * rng.standard_normal((n, c))


def make(
    seed: int, r: int, c: int, old_dtype: torch.dtype = torch.float64, new_dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = torch.from_numpy(rng.standard_normal((r, c))).to(old_dtype)
    new = (old.double() + torch.from_numpy(0.3 * rng.standard_normal((r, c)))).to(new_dtype)
    return old, new, damped(correlated(rng, 3 * c, c))


def output_error(weight: np.ndarray, reference: np.ndarray, inputs: np.ndarray) -> float:
    return float((((weight - reference) @ inputs.T) ** 2).sum())
