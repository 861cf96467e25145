"""Checkpoints are written whole or not at all."""

from __future__ import annotations

import errno
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from peft import LoraConfig, inject_adapter_in_model
from support.adapted_models import adapted
from support.foreign_module import ForeignModule, LanguageModel, foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, calibration_data
from support.method_registry import METHODS

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.callbacks.checkpoint_files import WholeCheckpointIO
from hpa_lightning.modules.task_state import TASK_STATE


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


class AdaptersAlone(ForeignModule):
    """As people make checkpoints small; with ``strict_loading`` off Lightning loads them on the pretrained model."""

    strict_loading = False  # type: ignore[assignment]
    by_hook = True

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        found = super().state_dict(*arguments, **options)
        return found if self.by_hook else {name: one for name, one in found.items() if "lora_" in name}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: one for name, one in kept if not self.by_hook or "lora_" in name}


@pytest.mark.parametrize("by_hook", [True, False])
def test_a_checkpoint_of_the_adapters_alone_is_told_not_to_hold_the_model(by_hook: bool, tmp_path: Path) -> None:
    tuned = AdaptersAlone(adapted(), OPTIMIZERS["sgd_momentum"])
    tuned.by_hook = by_hook
    saving = ModelCheckpoint(tmp_path, save_top_k=-1)
    trainer = quiet_trainer(tmp_path, [SequentialTuning(), saving], max_epochs=2, enable_checkpointing=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(tuned, token_loader(1, 8))
    told = [str(one.message) for one in caught if "without the 12 weights under them" in str(one.message)]
    assert len(told) == 1 and "not the trained model" in told[0] and "layers.0.down_proj.base_layer.weight" in told[0]
    held = torch.load(saving.best_model_path)["state_dict"]
    assert all(not one.any() for name, one in held.items() if "lora_B" in name), "the update is elsewhere"


def test_whole_checkpoints_are_not_told_so(tmp_path: Path) -> None:
    """Adapters on parameters of any name, too, as peft has them for experts."""
    experts = LanguageModel()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[], target_parameters=["up_proj.weight"]), experts)
    assert any("lora_A" in name for name in experts.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (adapted(), experts):
            WholeCheckpointIO(model).save_checkpoint({"state_dict": model.state_dict()}, tmp_path / "whole.ckpt")


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


def test_checkpoints_of_another_thread_are_written_before_the_task_s_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one from before the end, that lands after it, passes for the finished model."""
    save, ended = TorchCheckpointIO.save_checkpoint, threading.Event()

    def late(*arguments: Any, **options: Any) -> None:
        ended.wait(1)
        save(*arguments, **options)

    class Lands(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            ended.set()
            time.sleep(0.5)  # for the file to be written after the task's end, if that has not waited for it

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", late)
    steps = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    callbacks = [*METHODS["post_training"](calibration_data()), Lands(), steps]
    trainer = quiet_trainer(
        tmp_path, callbacks, max_epochs=1, enable_checkpointing=True, plugins=[AsyncCheckpointIO(TorchCheckpointIO())]
    )
    trainer.fit(foreign_module(OPTIMIZERS["sgd_momentum"], lora=True), token_loader(1, 8))
    states = {path.name: torch.load(path)[TASK_STATE] for path in tmp_path.glob("*.ckpt")}
    assert [name for name, state in states.items() if state["open_task"] is None] == ["finished.ckpt"]
