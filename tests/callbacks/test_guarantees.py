"""What must hold bit for bit in the in-training mode, whatever the optimizer and the trainer's settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.foreign_module import ACCELERATOR, foreign_module, quiet_trainer, token_loader
from support.method_registry import RETENTION
from torch import Tensor
from torch.distributed.tensor import DTensor

from hpa_lightning.callbacks import (
    CalibrationSettings,
    FocusPartition,
    MaskedFreezing,
    OrthogonalProjection,
)
from hpa_lightning.functional import RetentionSettings
from hpa_lightning.modules.lora import lora_layers

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw_decay": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw_tiny_steps": lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}
TRAINERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate_and_clip": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "bf16_mixed": {"precision": "bf16-mixed"},
    "bf16_true": {"precision": "bf16-true"},
    "fp16_mixed": {"precision": "16-mixed"},
}


def calibration_data() -> dict[str, Any]:
    return {
        "calibration": CalibrationSettings(safety_samples=8, task_samples=12, batch_size=4),
        "safety_data": token_loader(7, 8),
    }


def settings() -> dict[str, Any]:
    return {**calibration_data(), "retention": RETENTION}


def dense(module: L.LightningModule) -> dict[str, Tensor]:
    """Every tuned weight as one dense float64 matrix."""

    def exact(weight: Tensor) -> Tensor:
        weight = weight.detach()
        return (weight.full_tensor() if isinstance(weight, DTensor) else weight).double()

    adapted = dict(lora_layers(module))
    if adapted:
        return {name: exact(f.weight) + f.scaling * (exact(f.lora_b) @ exact(f.lora_a)) for name, f in adapted.items()}
    return {
        name: exact(inner.weight)
        for name, inner in module.named_modules()
        if isinstance(inner, torch.nn.Linear) and ".layers." in name
    }


class Watcher(L.Callback):
    """Measures both guarantees after every optimizer step, independently of the callbacks under test."""

    def __init__(self, partition: FocusPartition) -> None:
        self.partition = partition
        self.before: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.worst_inner_product = 0.0
        self.moved_free = 0.0
        self.steps = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = {name: weight.clone() for name, weight in dense(pl_module).items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.masks = {name: mask.clone() for name, mask in self.partition.retained.items()}
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        for name, weight in dense(pl_module).items():
            before, mask = self.before[name], self.masks[name]
            assert torch.equal(weight[:, mask], before[:, mask]), f"{name}: a retained column moved"
            update = weight - before
            norms = float(update.norm() * before.norm())
            if norms > 0:
                self.worst_inner_product = max(self.worst_inner_product, abs(float((update * before).sum())) / norms)
            self.moved_free = max(self.moved_free, float(update[:, ~mask].abs().max()))


def fit(module: L.LightningModule, callbacks: list[L.Callback], folder: Path, epochs: int = 2, **options: Any) -> None:
    L.seed_everything(5, verbose=False)
    trainer = quiet_trainer(folder, callbacks, max_epochs=epochs, **options)
    trainer.fit(module, token_loader(1, 20))


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
