"""MaskedFreezing: retained columns are the old ones bit for bit, also after a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module, token_loader
from support.method_fits import OPTIMIZERS, Watcher, calibration_data, fit, settings
from support.method_registry import METHODS
from support.resumed_fits import build, trainer

from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, NullSpaceProjection, OrthogonalProjection
from hpa_lightning.modules.lora import lora_layers


def test_merged_lora_columns_are_the_old_ones_bit_for_bit(tmp_path: Path) -> None:
    from hpa_lightning.modules.lora import merge_lora_

    module = foreign_module(OPTIMIZERS["adamw_decay"], lora=True)
    before = {name: f.weight.detach().clone() for name, f in lora_layers(module)}
    partition = FocusPartition(probe_steps=2, **settings())
    watcher = Watcher(partition)
    fit(module, [partition, MaskedFreezing(), watcher], tmp_path)
    merge_lora_(module)
    for name, factors in lora_layers(module):
        mask = watcher.masks[name].to(factors.weight.device)
        assert torch.equal(factors.weight[:, mask], before[name].to(mask.device)[:, mask])
        assert not torch.equal(factors.weight[:, ~mask], before[name][:, ~mask])


def test_freezing_without_partition_is_refused(tmp_path: Path) -> None:

    for callback in (MaskedFreezing(), OrthogonalProjection()):
        with pytest.raises(MisconfigurationException, match="exactly one FocusPartition"):
            fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [callback], tmp_path)


def test_frozen_columns_that_something_else_wrote_are_put_back(tmp_path: Path) -> None:
    class Writes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            if trainer.is_last_batch:  # no optimizer step follows
                with torch.no_grad():
                    pl_module.model.layers[0].q_proj.weight.add_(0.1)

    every = [*METHODS["in_training"](calibration_data()), Writes()]
    runner = trainer(tmp_path, every, max_epochs=1, enable_checkpointing=False)
    with pytest.warns(UserWarning, match=r"the frozen columns of 1 layers \(model.layers.0.q_proj\)"):
        runner.fit(build(False), token_loader(1, 20))


def test_it_is_refused_beside_null_space_projection(tmp_path: Path) -> None:
    methods = [NullSpaceProjection(**calibration_data()), FocusPartition(probe_steps=2, **settings()), MaskedFreezing()]
    with pytest.raises(MisconfigurationException, match="bring back what it took from the update"):
        fit(foreign_module(OPTIMIZERS["adamw_decay"], True), methods, tmp_path)
