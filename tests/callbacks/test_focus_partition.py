"""FocusPartition: the probe changes nothing, and a partition of no use is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, fit, settings

from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, OrthogonalProjection
from hpa_lightning.functional import RetentionSettings


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_partition_alone_changes_nothing(lora: bool, tmp_path: Path) -> None:
    """The probe puts weights, optimizer and random state back exactly: dropout and shuffling draw the same numbers."""
    results = []
    for callbacks in ([], [FocusPartition(probe_steps=3, **settings())]):
        module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
        L.seed_everything(5, verbose=False)
        trainer = quiet_trainer(tmp_path, callbacks, max_epochs=2)
        trainer.fit(module, token_loader(1, 20, shuffle=True))
        results.append([parameter.detach().clone() for parameter in module.parameters()])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("guards", [[], [MaskedFreezing], [OrthogonalProjection]], ids=["none", "frozen", "projected"])
def test_a_partition_that_nothing_uses_is_warned_of(guards: list[Any], tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["sgd_momentum"], lora=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, [FocusPartition(probe_steps=1, **settings()), *(guard() for guard in guards)], tmp_path, epochs=1)
    told = [str(one.message) for one in caught if "FocusPartition only measures" in str(one.message)]
    assert len(told) == (not guards) and all("Add MaskedFreezing() and OrthogonalProjection()" in text for text in told)


def test_a_partition_that_retains_nothing_is_warned_of(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["sgd_momentum"], lora=True)
    few = {**settings(), "retention": RetentionSettings(p_min=0.1, p_max=0.1)}
    with pytest.warns(UserWarning, match="FocusPartition: no column is retained in any of 12 linear layers"):
        fit(module, [FocusPartition(probe_steps=1, **few), MaskedFreezing()], tmp_path, epochs=1)
