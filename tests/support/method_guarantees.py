"""What every method must do, for the tests of the registry and of methods from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import ACCELERATOR
from support.method_fits import calibration_data
from support.method_registry import METHODS
from support.resumed_fits import ResumableLoader, Stop, build, trainer, updates
from torch import Tensor

STEPS = {7: "mid_epoch", 10: "epoch_end", 15: "trained_but_not_ended"}
"""Where a fit of three epochs of five steps is cut and goes on."""

CLIPPED: dict[str, Any] = {"gradient_clip_val": 0.3}
SKETCHED = ("null_space_sketch", "null_space_nearest", "regression_sketch")
"""Methods whose fits show that the rows of sketches are rounded to bfloat16, wherever they happen to point."""


@cache
def whole_and_checkpoints(method: str, lora: bool, folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The weights after a fit that saves nothing, and the folder of the checkpoints of one that does; both run once."""
    whole = build(lora)
    trainer(folder / "whole", METHODS[method](calibration_data()), enable_checkpointing=False, **CLIPPED).fit(
        whole, ResumableLoader()
    )
    # As a power cut leaves them: each is complete before the next step begins.
    saves = [
        ModelCheckpoint(folder / "steps", filename="{step}", every_n_train_steps=step, save_top_k=-1) for step in STEPS
    ]
    saved = trainer(folder / "saved", [*METHODS[method](calibration_data()), Stop(max(STEPS)), *saves], **CLIPPED)
    with pytest.raises(RuntimeError, match="power cut"):
        saved.fit(build(lora), ResumableLoader())
    return whole.state_dict(), folder / "steps"


def assert_resume_equals_an_uninterrupted_run(method: str, lora: bool, step: int, folder: Path, tmp_path: Path) -> None:
    """``folder`` holds what is fitted once for all steps."""
    whole, checkpoints = whole_and_checkpoints(method, lora, folder / f"{method}-{lora}")
    second = build(lora)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)  # everything must come from the checkpoint
    resumed = trainer(tmp_path, METHODS[method](calibration_data()), enable_checkpointing=False, **CLIPPED)
    resumed.fit(second, ResumableLoader(), ckpt_path=checkpoints / f"step={step}.ckpt")
    assert resumed.global_step == 15
    for (name, expected), actual in zip(whole.items(), second.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), name


@cache
def whole_updates(method: str, lora: bool, folder: Path) -> dict[str, Tensor]:
    """What two tasks do to the weights, float32; fitted once."""
    return updates(method, lora, folder / f"{method}-{lora}-updates", **CLIPPED)


def assert_accumulated_batches_are_one_larger_batch(method: str, lora: bool, folder: Path, tmp_path: Path) -> None:
    """``folder`` holds what other tests of the method compare with too."""
    whole = whole_updates(method, lora, folder)
    halves = updates(method, lora, tmp_path, 2, accumulate_grad_batches=2, **CLIPPED)
    assert sum(float(update.abs().sum()) for update in whole.values()) > 0
    for name, update in whole.items():
        atol = 2e-4 if method in SKETCHED else 2e-5
        torch.testing.assert_close(halves[name], update, rtol=2e-3, atol=atol)


def assert_half_precision_does_nearly_the_same(method: str, lora: bool, folder: Path, tmp_path: Path) -> None:
    """``folder`` as above."""
    exact = torch.cat([update.flatten() for update in whole_updates(method, lora, folder).values()])
    # The first steps of 16-mixed may be skipped, until the loss's scale fits.
    on_devices = [] if ACCELERATOR == "cpu" else [("16-mixed", 0.7)]
    for precision, likeness in (("bf16-mixed", 0.9), ("bf16-true", 0.8), *on_devices):
        half = updates(method, lora, tmp_path / precision, precision=precision, **CLIPPED)
        flat = torch.cat([update.flatten() for update in half.values()])
        cosine, size = torch.nn.functional.cosine_similarity(exact, flat, dim=0), flat.norm() / exact.norm()
        assert float(cosine) > likeness
        assert (0.5 if precision == "16-mixed" else 0.8) < float(size) < 1.25
