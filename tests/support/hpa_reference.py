"""Slow float64 NumPy reference of HPA, written from the equations: general inverses, loops, dense updates."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import HealthCheck, settings

# Derandomised, so that a run of the suite is a function of the code alone.
cases = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=400
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def hessian(inputs: np.ndarray, damping: float) -> np.ndarray:
    n, c = inputs.shape
    hessian = (2.0 / n) * inputs.T @ inputs
    for j in range(c):
        if hessian[j, j] == 0:
            hessian[j, j] = 1.0
    return hessian + damping * np.mean(np.diag(hessian)) * np.eye(c)


def inverse_diagonal(inputs: np.ndarray, damping: float) -> np.ndarray:
    return np.diag(np.linalg.inv(hessian(inputs, damping)))


def focus(delta: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    r, c = delta.shape
    return np.array([sum(delta[i, j] ** 2 for i in range(r)) / r / inverse[j] for j in range(c)])


def alpha(eps: np.ndarray, zeta: np.ndarray, low: float = 0.4, high: float = 0.8) -> float:
    logs = [math.log(e) - math.log(z) for e, z in zip(eps, zeta, strict=True) if e > 0 and z > 0]
    mean = sum(logs) / len(logs) if logs else 0.0
    return low + (high - low) * (1 + math.tanh(mean)) / 2


def top(values: np.ndarray, columns: list[int], count: int) -> list[int]:
    return sorted(columns, key=lambda j: (-values[j], j))[:count]


def count(percent: float, c: int) -> int:
    return min(c, math.floor(percent * c / 100 + 0.5))


def retained(eps: np.ndarray, zeta: np.ndarray, percent: float, focus_percent: float, a: float) -> np.ndarray:
    c = len(eps)
    safety = set(top(eps, list(range(c)), count(focus_percent, c)))
    shared = safety & set(top(zeta, list(range(c)), count(focus_percent, c)))
    budget = count(percent, c)
    kept = top(eps, sorted(safety - shared), budget)
    kept += top(eps - a * zeta, sorted(shared), budget - len(kept))
    mask = np.zeros(c, dtype=bool)
    mask[kept] = True
    return mask


def scale(old: np.ndarray, new: np.ndarray) -> float:
    norm = float((old**2).sum())
    return float(((new - old) * old).sum()) / norm if norm > 0 else 0.0


def fused(old: np.ndarray, new: np.ndarray, mask: np.ndarray, orthogonal: bool = True) -> np.ndarray:
    delta = new - old
    tilde = old + delta - (scale(old, new) if orthogonal else 0.0) * old
    return mask * old + (1 - mask) * tilde


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Entry by entry, relative."""
    np.testing.assert_allclose(array(actual), expected, rtol=tolerance, atol=0)


def near(actual: torch.Tensor, expected: np.ndarray, dtype: torch.dtype, size: np.ndarray) -> None:
    """Within 1e-5 of the magnitudes that were added up, plus one rounding to the storage dtype."""
    info = torch.finfo(dtype)
    allowed = 1e-5 * np.abs(size) + info.eps * np.abs(expected) + info.tiny
    assert (np.abs(array(actual) - expected) <= allowed).all()
