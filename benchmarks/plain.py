"""Partition and fusion of a block as the public code of SparseGPT and Safe Delta would write it.

One fp32 Hessian for each linear layer, updated after every sample; a dense inverse; a dense update. Written anew from
the description of that code, its memory included (a Hessian makes room for its factor, and that for its inverse); it
computes the same numbers as the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class LayerHessian:
    """Sums ``2/n X^T X`` of one layer's inputs in fp32."""

    def __init__(self, layer: nn.Linear) -> None:
        self.hessian = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)
        self.samples = 0

    def add_batch(self, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).t().float()
        count = rows.shape[1]
        self.hessian *= self.samples / (self.samples + count)
        self.samples += count
        rows = math.sqrt(2 / self.samples) * rows
        self.hessian += rows @ rows.t()

    def inverse_diagonal(self, damping: float) -> Tensor:
        hessian = self.hessian
        del self.hessian
        diagonal = torch.arange(len(hessian), device=hessian.device)
        dead = torch.diag(hessian) == 0
        hessian[dead, dead] = 1
        hessian[diagonal, diagonal] += damping * torch.mean(torch.diag(hessian))
        hessian = torch.linalg.cholesky(hessian)
        hessian = torch.cholesky_inverse(hessian)
        return torch.diag(hessian).clone()


def inverse_diagonals(
    block: nn.Module, linears: Mapping[str, nn.Linear], batches: Sequence[Sequence[Tensor]], run: object
) -> dict[str, Tensor]:
    """diag(H^-1) of every layer's inputs; ``run(batch)`` runs the block."""
    hessians = {name: LayerHessian(layer) for name, layer in linears.items()}
    handles = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: hessians[name].add_batch(inputs[0]))
        for name, layer in linears.items()
    ]
    for batch in batches:
        run(batch)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return {name: hessians.pop(name).inverse_diagonal(0.01) for name in linears}


def fuse(
    weight: Tensor, a: Tensor, b: Tensor, scaling: float, safety: Tensor, task: Tensor, percent: float, alpha: float
) -> Tensor:
    """The three steps of HPA on one layer, with the dense update."""
    old = weight.float()
    delta = scaling * (b.float() @ a.float())
    energy = (delta**2).mean(dim=0)
    epsilon, zeta = energy / safety, energy / task
    columns = old.shape[1]
    focused, kept = int(2 * percent * columns / 100 + 0.5), int(percent * columns / 100 + 0.5)
    is_safety, is_task = torch.zeros(2, columns, dtype=torch.bool, device=old.device)
    is_safety[torch.argsort(epsilon, descending=True)[:focused]] = True
    is_task[torch.argsort(zeta, descending=True)[:focused]] = True
    alone, shared = is_safety & ~is_task, is_safety & is_task
    mask = torch.zeros(columns, dtype=torch.bool, device=old.device)
    chosen = torch.nonzero(alone).flatten()
    mask[chosen[torch.argsort(epsilon[chosen], descending=True)[:kept]]] = True
    left = kept - int(mask.sum())
    candidates = torch.nonzero(shared).flatten()
    phi = epsilon[candidates] - alpha * zeta[candidates]
    mask[candidates[torch.argsort(phi, descending=True)[: max(left, 0)]]] = True
    share = torch.sum(delta * old) / torch.sum(old * old)
    new = old + delta - share * old
    return torch.where(mask, old, new).to(weight.dtype)
