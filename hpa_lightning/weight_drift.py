"""How far the weights of linear layers have moved, by decoder block and by kind of layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", str, int)


class WeightDrift:
    """Sums up ``||W - W_0|| / ||W_0||`` (Frobenius norms) over layers that are given one after the other.

    Example:
        >>> drift = WeightDrift()
        >>> drift.add("layers.0.mlp.up_proj", 1, torch.eye(2), 1.5 * torch.eye(2))
        >>> drift.add("layers.1.mlp.up_proj", 2, torch.eye(2), torch.eye(2))
        >>> drift.blocks(2), round(drift.modules()["up_proj"], 4)
        ([0.5, 0.0], 0.3536)
    """

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, float, float]] = {}  # name -> block, norm of the change, norm before

    @torch.no_grad()
    def add(self, name: str, block: int, before: Tensor, after: Tensor | None) -> None:
        """Tell a layer.

        Args:
            name: its dotted name.
            block: its decoder block, counted from 1.
            before, after: its weight, any floating dtype, of one shape; differences are taken in fp32 and summed in
                fp64. ``after=None``: it has not moved.

        Raises:
            ValueError: other shapes, or a weight that is not finite.
        """
        size = _norm(before.float())
        if after is not None and after.shape != before.shape:
            raise ValueError(
                f"{name}: {tuple(before.shape)} before and {tuple(after.shape)} after; expected one shape."
            )
        change = 0.0 if after is None else _norm(after.float() - before.to(after.device).float())
        if not math.isfinite(size + change):
            raise ValueError(f"{name}: a weight is not finite; expected two models that work.")
        self._layers[name] = block, change, size

    def blocks(self, count: int) -> list[float]:
        """The share of every block, the first to the last; 0 for one without a layer."""
        found = self.grouped({name: block for name, (block, _, _) in self._layers.items()})
        return [found.get(index, 0.0) for index in range(1, count + 1)]

    def modules(self) -> dict[str, float]:
        """Last name of the layers -> the share over all of that name."""
        return self.grouped({name: name.rsplit(".", 1)[-1] for name in self._layers})

    def grouped(self, groups: Mapping[str, Key]) -> dict[Key, float]:
        """The share of every group; ``groups`` says of each layer which it belongs to."""
        shares = {}
        for group in sorted(set(groups.values())):
            chosen = [self._layers[name] for name, other in groups.items() if other == group]
            change, size = (math.hypot(*(found[part] for found in chosen)) for part in (1, 2))
            shares[group] = 0.0 if change == 0 else change / size if size else math.inf
        return shares


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
