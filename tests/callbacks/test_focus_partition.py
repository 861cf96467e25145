"""FocusPartition: the probe changes nothing, and a partition of no use is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from support.foreign_module import ForeignModule, foreign_module, quiet_trainer, token_loader
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


class ClipsItself(ForeignModule):
    clipped = 0

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        type(self).clipped += 1


def test_the_probe_clips_as_the_module_does(tmp_path: Path) -> None:
    """Three steps of the probe and two of the fit."""
    model = foreign_module(OPTIMIZERS["sgd_momentum"], lora=True).model
    callbacks = [FocusPartition(probe_steps=3, **settings()), MaskedFreezing()]
    trainer = quiet_trainer(tmp_path, callbacks, max_epochs=1)
    trainer.fit(ClipsItself(model, OPTIMIZERS["sgd_momentum"]), token_loader(1, 8))
    assert ClipsItself.clipped == 5


class SmallLoss(ForeignModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return 1e-7 * super().training_step(batch, batch_idx)


def test_the_probe_in_fp16_has_a_loss_scale(tmp_path: Path) -> None:
    """Without it gradients below 6e-8 are 0, and there is no update to partition."""
    updates: list[float] = []

    class Looks(FocusPartition):
        def _select(self, *arguments: Any) -> Any:
            updates.extend(float(linear.update().norm()) for linear in self.layers)
            return super()._select(*arguments)

    module = SmallLoss(foreign_module(OPTIMIZERS["adamw_decay"], lora=False).model, OPTIMIZERS["adamw_decay"])
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    callbacks = [Looks(probe_steps=2, **settings()), MaskedFreezing()]
    trainer = quiet_trainer(tmp_path, callbacks, max_epochs=1, plugins=[scaled])
    trainer.fit(module, token_loader(1, 8))
    probed = max(updates)
    rate = module.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
    assert probed > rate
