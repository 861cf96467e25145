"""Measures by dense float64 algebra what a task's update has changed of the layers' outputs on given inputs."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def output_changes(
    before: dict[str, Tensor], after: dict[str, Tensor], inputs: dict[str, np.ndarray]
) -> dict[str, float]:
    """Layer -> ``||X (W' - W)^T||_F / ||X W^T||_F``.

    Args:
        before, after: weights, float64, by layer.
        inputs: ``X (n, c)`` of each layer.
    """
    found = {}
    for name, weight in before.items():
        old, update = weight.numpy(), (after[name] - weight).numpy()
        found[name] = float(np.linalg.norm(inputs[name] @ update.T) / np.linalg.norm(inputs[name] @ old.T))
    return found
