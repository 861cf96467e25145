"""Tensors on which the public code of Safe Delta and Model Tailor was run, and tables of its results."""

from __future__ import annotations

import torch

from hpa_lightning.functional import surgeon_factor
from hpa_lightning.functional.numerics.inverse_diagonal import damp_
from hpa_lightning.functional.numerics.packed_triangle import PackedTriangle


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Old and new weight `(6, 16)` and the factor of 40 inputs, in closed form."""
    i, j = torch.arange(6.0).unsqueeze(1), torch.arange(16.0).unsqueeze(0)
    old = torch.sin(1.3 * i + 2.1 * j * j + 0.7)
    new = old + 0.3 * torch.cos(0.9 * i * j + 1.7 * i + 0.4)
    n = torch.arange(40.0).unsqueeze(1)
    inputs = (torch.sin(0.37 * n * (j + 1) + j) + 0.5 * torch.cos(1.1 * n)) * (1 + 0.2 * j)
    gram = PackedTriangle(16, inputs.device)
    gram.add_rows_(inputs, 0.0)
    return old, new, surgeon_factor(damp_(gram, 40, 0.01).dense())


def table(numbers: str) -> torch.Tensor:
    return torch.tensor([float(number) for number in numbers.split()]).view(6, 16)
