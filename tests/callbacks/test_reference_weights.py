"""The part that holds the aligned model's weights: taken once, asked for later, saved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpa_lightning.callbacks.reference_weights import ReferenceWeights


class Layers(list[Any]):
    """Handles on layers, as `TunedLayers` gives them."""

    owner = SimpleNamespace()


def layer(name: str, value: float) -> Any:
    weight = torch.full((2, 3), value)
    return SimpleNamespace(name=name, weight=weight, before=lambda: weight)


def task(index: int) -> Any:
    return SimpleNamespace(index=index, name=str(index))


def test_the_weights_are_those_before_the_first_task_whatever_happens_later() -> None:
    layers = Layers([layer("a", 1.0), layer("b", 2.0)])
    reference = ReferenceWeights(layers)  # type: ignore[arg-type]
    reference.prepare(task(0))
    for linear in layers:
        linear.weight.fill_(9.0)
    reference.prepare(task(1))
    assert len(reference) == 2
    assert [float(reference.of(linear).mean()) for linear in layers] == [1.0, 2.0]
    resumed = ReferenceWeights(layers)  # type: ignore[arg-type]
    resumed.load_state_dict(reference.state_dict())
    resumed.prepare(task(1))
    assert torch.equal(resumed.of(layers[0]), torch.ones(2, 3))


def test_layers_that_were_not_there_before_the_first_task_are_named() -> None:
    layers = Layers([layer("a", 1.0)])
    reference = ReferenceWeights(layers)  # type: ignore[arg-type]
    reference.prepare(task(0))
    layers.append(layer("new", 1.0))
    with pytest.raises(ValueError, match=r"SimpleNamespace has no weights from before the first task for \['new'\]"):
        reference.prepare(task(1))
