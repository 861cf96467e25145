"""What SafeDelta and ModelTailor share: one factorisation for each input, any kind of model, equal processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.foreign_module import LanguageModel, foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit
from support.method_registry import METHODS
from torch import Tensor

from hpa_lightning import functional as F

SURGEONS = ["safe_delta", "model_tailor"]


@pytest.mark.parametrize("method", SURGEONS)
def test_layers_with_one_input_share_a_factorisation(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = F.surgeon_factor

    def counted(hessian: Tensor) -> Tensor:
        sizes.append(len(hessian))
        return original(hessian)

    monkeypatch.setattr(F, "surgeon_factor", counted)
    fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), METHODS[method](calibration_data()), tmp_path)
    assert sizes == [12, 12, 24] * 3  # query and value, up, down


class Scaled(LanguageModel):
    """Touches the hidden state between its blocks, so that they cannot be replayed one by one."""

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for block in self.layers:
            hidden = block(hidden * 1.0, scale=0.5)
        return self.head(hidden)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("method", SURGEONS)
def test_models_that_cannot_be_replayed_give_the_same(method: str, lora: bool, tmp_path: Path) -> None:
    """Whole forward passes, one for each block, see the same weights after as before a block's surgery."""
    results = []
    for kind in (LanguageModel, Scaled):
        module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
        module.model.__class__ = kind
        fit(module, METHODS[method](calibration_data()), tmp_path)
        results.append(dense(module))
    for name, weight in results[0].items():
        assert torch.equal(weight, results[1][name]), name


@pytest.mark.parametrize("method", SURGEONS)
def test_an_error_leaves_the_trained_weights(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = foreign_module(OPTIMIZERS["adamw_decay"], lora=False)
    fit(plain, [], tmp_path)
    original, calls = F.surgeon_factor, []

    def failing(hessian: Tensor) -> Tensor:
        calls.append(hessian)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return original(hessian)

    monkeypatch.setattr(F, "surgeon_factor", failing)
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(module, METHODS[method](calibration_data()), tmp_path)
    for name, weight in dense(plain).items():
        assert torch.equal(dense(module)[name], weight), name
