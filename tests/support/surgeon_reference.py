"""Safe Delta, Model Tailor and the compensation in slow float64 NumPy loops: a general inverse for every column."""

from __future__ import annotations

import math

import numpy as np


def damped(inputs: np.ndarray) -> np.ndarray:
    hessian = 2.0 / len(inputs) * inputs.T @ inputs
    return hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))


def factor_diagonal(hessian: np.ndarray) -> np.ndarray:
    """sqrt of the first diagonal entry of the inverse within the columns from j on."""
    return np.array([math.sqrt(np.linalg.inv(hessian[j:, j:])[0, 0]) for j in range(len(hessian))])


def surgery(weight: np.ndarray, target: np.ndarray, moved: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Move one entry at a time; each time solve for the best reaction of the columns to its right."""
    result = weight.copy()
    rows, columns = weight.shape
    for j in range(columns):
        inverse = np.linalg.inv(hessian[j:, j:])
        for i in range(rows):
            if moved[i, j]:
                step = target[i, j] - result[i, j]
                result[i, j:] += step * inverse[0] / inverse[0, 0]
                result[i, j] = target[i, j]
    return result


def accept(delta: np.ndarray, diagonal: np.ndarray, budget: float, protected: float, size: int) -> np.ndarray:
    rows, columns = delta.shape
    mask = np.zeros((rows, columns), dtype=bool)
    for start in range(0, columns, size):
        block = range(start, min(start + size, columns))
        sensitivity = {j: 1 / diagonal[j] ** 2 for j in block}
        entries = sorted(((i, j) for j in block for i in range(rows)), key=lambda e: (sensitivity[e[1]], e[1], e[0]))
        entries = entries[: len(entries) - int(protected * len(entries) / 100)]
        limit = sum(sensitivity.values()) / len(sensitivity) * budget / 2 * rows / 4096
        spent = 0.0
        for i, j in entries:
            spent += delta[i, j] ** 2 * sensitivity[j]
            if spent > limit:
                break
            mask[i, j] = True
    return mask


def patch(
    old: np.ndarray, new: np.ndarray, diagonal: np.ndarray, percent: float, mix: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = old.shape
    mask = np.zeros((rows, columns), dtype=bool)
    scores = np.zeros((rows, columns))
    for start in range(0, columns, size):
        block = slice(start, min(start + size, columns))
        for i in range(rows):
            parts = [np.abs(new[i, block] - old[i, block]), new[i, block] ** 2 / diagonal[block] ** 2]
            z = [(p - p.mean()) / p.std() if len(p) > 1 and p.std() > 1e-9 else 0 * p for p in parts]
            scores[i, block] = mix * z[0] + (1 - mix) * z[1]
        entries = [(i, j) for i in range(rows) for j in range(*block.indices(columns))]
        entries.sort(key=lambda e: -scores[e])
        for entry in entries[: math.floor(percent * len(entries) / 100 + 0.5)]:
            mask[entry] = True
    return mask, scores
