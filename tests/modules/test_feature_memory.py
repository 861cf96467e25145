"""FeatureMemory: the same features, each picture seen once, and anew when the tower is another one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hpa_lightning.float32_products import float32_products
from hpa_lightning.modules.feature_memory import FeatureMemory
from hpa_lightning.modules.vision_towers import spatial_features


@pytest.fixture
def tower() -> nn.Module:
    made: nn.Module = timm.create_model("test_convnext", num_classes=0).eval().requires_grad_(False)
    return made


@pytest.fixture
def seen() -> list[int]:
    """How many pictures the tower saw at a time."""
    return []


def counting(tower: nn.Module, seen: list[int]) -> Callable[[Tensor], Tensor]:
    def see(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return spatial_features(tower, pixels)

    return see


def test_a_picture_is_seen_once(tower: nn.Module, seen: list[int]) -> None:
    memory, pixels = FeatureMemory(10), torch.randn(4, 3, 64, 64)
    see = counting(tower, seen)
    first = memory.features(tower, pixels[:3], see)
    with torch.inference_mode():
        memory.features(tower, pixels[[2, 3]], see)
    again = memory.features(tower, pixels[[3, 1]], see)
    assert seen == [3, 1] and len(memory) == 4
    wanted = spatial_features(tower, pixels)
    torch.testing.assert_close(first, wanted[:3])
    torch.testing.assert_close(again, wanted[[3, 1]])
    assert not again.is_inference()


def test_it_keeps_no_more_than_it_may(tower: nn.Module, seen: list[int]) -> None:
    memory, pixels = FeatureMemory(2), torch.randn(3, 3, 64, 64)
    for _ in range(2):
        found = memory.features(tower, pixels, counting(tower, seen))
        torch.testing.assert_close(found, spatial_features(tower, pixels))
    assert seen == [3, 1] and len(memory) == 2


@pytest.mark.parametrize("change", ["written", "replaced"])
def test_other_weights_are_asked_anew(tower: nn.Module, seen: list[int], change: str) -> None:
    memory, pixels = FeatureMemory(10), torch.randn(2, 3, 64, 64)
    before = memory.features(tower, pixels, counting(tower, seen))
    weight = next(tower.parameters())
    if change == "written":
        with torch.no_grad():
            weight.mul_(1.5)
    else:
        weight.data = weight.data * 1.5
    after = memory.features(tower, pixels, counting(tower, seen))
    assert seen == [2, 2] and not torch.allclose(before, after)


@pytest.mark.parametrize("state", ["trained", "training mode"])
def test_a_tower_that_may_change_is_not_remembered(tower: nn.Module, seen: list[int], state: str) -> None:
    tower.train(state == "training mode").requires_grad_(state == "trained")
    memory, pixels = FeatureMemory(10), torch.randn(2, 3, 64, 64)
    for _ in range(2):
        found = memory.features(tower, pixels, counting(tower, seen))
    assert seen == [2, 2] and len(memory) == 0 and found.requires_grad == (state == "trained")


def test_mixed_precision_has_features_of_its_own(tower: nn.Module, seen: list[int]) -> None:
    memory, pixels = FeatureMemory(10), torch.randn(2, 3, 64, 64)
    memory.features(tower, pixels, counting(tower, seen))
    with torch.autocast("cpu", torch.bfloat16):
        memory.features(tower, pixels[:1], counting(tower, seen))
    assert memory.features(tower, pixels, counting(tower, seen)).dtype == torch.float32
    assert seen == [2, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_a_copy_remembers_nothing(tower: nn.Module, seen: list[int], copied: Callable[[FeatureMemory], Any]) -> None:
    """What is remembered belongs to weights by their address, where a copy's model may have others."""
    memory, pixels = FeatureMemory(10), torch.randn(2, 3, 64, 64)
    memory.features(tower, pixels, counting(tower, seen))
    found = copied(memory)
    assert len(found) == 0 and found.pictures == 10 and len(memory) == 2
    found.features(tower, pixels, counting(tower, seen))
    assert seen == [2, 2]


def test_features_of_another_rounding_are_not_handed_out(tower: nn.Module, seen: list[int]) -> None:
    memory, pixels = FeatureMemory(10), torch.randn(2, 3, 64, 64)
    for _ in range(2):
        memory.features(tower, pixels, counting(tower, seen))
        with float32_products():
            memory.features(tower, pixels, counting(tower, seen))
    assert seen == [2, 2]
