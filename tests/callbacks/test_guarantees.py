"""What must hold bit for bit in the in-training mode, whatever the optimizer and the trainer's settings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.foreign_module import ACCELERATOR, foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, TRAINERS, Watcher, fit, settings

from hpa_lightning.callbacks import (
    FocusPartition,
    MaskedFreezing,
    OrthogonalProjection,
)
from hpa_lightning.functional import RetentionSettings
from hpa_lightning.modules.lora import lora_layers


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_retained_columns_and_orthogonality(lora: bool, optimizer: str, trainer: str, tmp_path: Path) -> None:
    if trainer == "fp16_mixed" and ACCELERATOR == "cpu":
        pytest.skip("Lightning offers 16-mixed on devices alone")
    if trainer == "bf16_true" and optimizer == "adamw_tiny_steps":
        pytest.skip("steps of 1e-6 are below the spacing of bfloat16 weights: nothing moves")
    module = foreign_module(OPTIMIZERS[optimizer], lora)
    partition = FocusPartition(probe_steps=2, **settings())
    watcher = Watcher(partition)
    fit(module, [partition, MaskedFreezing(), OrthogonalProjection(), watcher], tmp_path, **TRAINERS[trainer])
    assert watcher.steps >= 5
    # 36 entries of B in bfloat16 may hold no update closer to orthogonal; see `project_lora_updates_`.
    assert watcher.worst_inner_product <= (1e-4 if trainer == "bf16_true" and lora else 1e-6)
    assert watcher.moved_free > 0, "nothing was trained"
    shares = [float(mask.float().mean()) for mask in watcher.masks.values()]
    assert len(shares) == 12 and all(0.15 <= share <= 0.45 for share in shares)


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


def test_freezing_without_partition_is_refused(tmp_path: Path) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    for callback in (MaskedFreezing(), OrthogonalProjection()):
        with pytest.raises(MisconfigurationException, match="exactly one FocusPartition"):
            fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [callback], tmp_path)


def test_missing_safety_data_is_refused_before_training(tmp_path: Path) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    with pytest.raises(MisconfigurationException, match="safety_data"):
        fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [FocusPartition()], tmp_path)


def test_hooks_are_removed_after_a_crash(tmp_path: Path) -> None:
    class Crash(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise RuntimeError("crash")

    module = foreign_module(OPTIMIZERS["sgd_momentum"], True)
    freezing, projection = MaskedFreezing(), OrthogonalProjection()
    with pytest.raises(RuntimeError, match="crash"):
        fit(module, [FocusPartition(probe_steps=1, **settings()), freezing, projection, Crash()], tmp_path)
    assert not freezing._handles and not projection._handles
    for inner in module.modules():
        assert not inner._forward_pre_hooks and not inner._forward_hooks and "forward" not in inner.__dict__


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
