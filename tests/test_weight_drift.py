"""The drift of weights against norms of whole blocks in float64."""

from __future__ import annotations

import math

import pytest
import torch

from hpa_lightning.weight_drift import WeightDrift


def test_shares_are_those_of_all_weights_of_a_group_together() -> None:
    generator = torch.Generator().manual_seed(2)
    drift, layers = WeightDrift(), {}
    for block in (1, 2):
        for name in ("q_proj", "up_proj"):
            before = torch.randn(4, 3, generator=generator)
            after = None if (block, name) == (2, "q_proj") else before + 0.1 * torch.randn(4, 3, generator=generator)
            drift.add(f"layers.{block - 1}.{name}", block, before, after)
            layers[block, name] = (before.double(), (before if after is None else after).double())

    def share(chosen: list[tuple[int, str]]) -> float:
        before, after = (torch.cat([layers[key][part].flatten() for key in chosen]) for part in (0, 1))
        return float((after - before).norm() / before.norm())

    expected = [share([(block, "q_proj"), (block, "up_proj")]) for block in (1, 2)]
    assert drift.blocks(3) == pytest.approx([*expected, 0.0], rel=1e-6)
    assert drift.modules() == pytest.approx(
        {name: share([(1, name), (2, name)]) for name in ("q_proj", "up_proj")}, rel=1e-6
    )


def test_a_layer_that_is_told_again_counts_once() -> None:
    drift = WeightDrift()
    for factor in (5.0, 2.0):
        drift.add("layers.0.up_proj", 1, torch.eye(2), factor * torch.eye(2))
    assert drift.blocks(1) == [1.0]


def test_weights_that_were_zero_and_bad_ones() -> None:
    drift = WeightDrift()
    drift.add("a", 1, torch.zeros(2), torch.ones(2))
    drift.add("b", 2, torch.zeros(2), None)
    assert drift.blocks(2) == [math.inf, 0.0]
    with pytest.raises(ValueError, match=r"c: \(2,\) before and \(3,\) after; expected one shape"):
        drift.add("c", 1, torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="c: a weight is not finite"):
        drift.add("c", 1, torch.ones(2), torch.tensor([1.0, math.nan]))
