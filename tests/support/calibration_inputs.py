"""Inputs of a layer with outlier columns."""

from __future__ import annotations

import numpy as np
import torch


def make_inputs(seed: int, n: int, c: int, dead: float, spread: float, rank: int | None = None) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, c))
    if rank is not None:
        x = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, c)) + 0.05 * x
    x *= 10.0 ** rng.uniform(-spread, spread, c)
    x[:, rng.random(c) < dead] = 0.0
    return torch.from_numpy(x)
