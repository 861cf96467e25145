"""Partition and fusion of a block as the public code of SparseGPT and Safe Delta would write it.

One fp32 Hessian for each linear layer, updated after every sample; a dense inverse; a dense update. Written anew from
the description of that code, its memory included (the block's inputs and outputs are held; a Hessian makes room for its
factor, and that for its inverse); it computes the same numbers as the package. That code runs the block a second time
and factorises once more, which this leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

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


class _Caught(Exception):
    """The block's input has been seen."""


def inverse_diagonals(
    block: nn.Module, linears: Mapping[str, nn.Linear], batches: Sequence[Tensor], run: Callable[[Tensor], object]
) -> dict[str, Tensor]:
    """diag(H^-1) of every layer's inputs; ``run(batch)`` runs the model up to the block at least.

    The inputs and the outputs of the block are held for all samples, and all Hessians while the samples pass.
    """
    inputs: Tensor | None = None
    settings: dict[str, Any] = {}
    position = 0

    def catch(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inputs
        if inputs is None:
            inputs = args[0].new_zeros(len(batches), *args[0].shape[1:])
        inputs[position] = args[0]
        settings.update(kwargs)
        raise _Caught

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    for position, batch in enumerate(batches):  # noqa: B007  (read by `catch`)
        with suppress(_Caught):
            run(batch)
    handle.remove()
    assert inputs is not None
    outputs = torch.zeros_like(inputs)
    hessians = {name: LayerHessian(layer) for name, layer in linears.items()}
    handles = [
        layer.register_forward_hook(lambda module, args, output, name=name: hessians[name].add_batch(args[0]))
        for name, layer in linears.items()
    ]
    for index in range(len(batches)):
        output = block(inputs[index : index + 1], **settings)
        outputs[index] = (output[0] if isinstance(output, tuple) else output)[0]
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
