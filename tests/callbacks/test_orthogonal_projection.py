"""In-training HPA keeps its columns and stays orthogonal, whatever the optimizer and the trainer's settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.foreign_module import ACCELERATOR, foreign_module
from support.method_fits import OPTIMIZERS, TRAINERS, Watcher, fit, settings

from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, OrthogonalProjection


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
