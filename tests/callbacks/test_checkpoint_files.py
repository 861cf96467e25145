"""Checkpoints are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, calibration_data
from support.method_registry import METHODS

from hpa_lightning.callbacks.checkpoint_files import WholeCheckpointIO


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, path)

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(torch, "save", half)
        with pytest.raises(OSError, match="No space left"):
            WholeCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_fits_with_our_callbacks_write_them_and_a_plugin_of_the_users_stays(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    for plugins, expected in (([], WholeCheckpointIO), ([Own()], Own)):
        trainer = quiet_trainer(
            tmp_path,
            METHODS["post_training"](calibration_data()),
            max_epochs=1,
            enable_checkpointing=True,
            plugins=plugins,
        )
        trainer.fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), token_loader(1, 8))
        assert type(trainer.strategy.checkpoint_io) is expected
        assert torch.load(trainer.checkpoint_callback.best_model_path)["global_step"] == 2  # type: ignore[union-attr]
