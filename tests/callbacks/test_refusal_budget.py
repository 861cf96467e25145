"""The refusals of the calibration set become no less likely than was allowed."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from support.foreign_module import foreign_module, token_loader
from support.method_fits import OPTIMIZERS, calibration_data, fit

from hpa_lightning.callbacks import NullSpaceProjection


@torch.no_grad()
def loss_of(module: L.LightningModule) -> float:
    """Of the safety batches, in eval mode."""
    module.eval()
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    losses = [float(module.training_step(batch, 0)) for batch in token_loader(7, 8)]
    del module.log
    module.train()
    return sum(losses) / len(losses)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("budget", [0.0, 0.01])
def test_the_loss_of_the_refusals_rises_by_no_more_than_the_budget(lora: bool, budget: float, tmp_path: Path) -> None:
    free, bound = (foreign_module(OPTIMIZERS["adamw_decay"], lora) for _ in range(2))
    for module in (free, bound):  # what no budget covers stays as it is
        module.model.embedding.requires_grad_(False)
        module.model.head.requires_grad_(False)
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(False)
    start = loss_of(bound)
    fit(free, [], tmp_path / "free")
    projection = NullSpaceProjection(share="refusals", budget=budget, **calibration_data())
    fit(bound, [projection], tmp_path / "bound")
    assert loss_of(free) > start + 0.02, "plain tuning keeps to the budget by itself"
    assert loss_of(bound) <= start + budget + 1e-5
