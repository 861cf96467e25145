"""Fits of the foreign module that are cut and go on, on a loader that stores its position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.foreign_module import ForeignModule, foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, calibration_data, dense
from support.method_registry import METHODS

from hpa_lightning.modules.lora import merge_lora_, restart_lora_


def trainer(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    return quiet_trainer(
        folder, callbacks, **{"max_epochs": 3, "precision": "32-true", "enable_checkpointing": True, **options}
    )


def build(lora: bool) -> ForeignModule:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    for block in module.model.layers:
        block.dropout.p = 0.0  # Lightning does not store the random state
    return module


class Stop(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.on_train_batch_start(trainer)


class ResumableLoader:
    """Somebody's loader that stores its position, as Lightning's checkpoints expect it."""

    def __init__(self) -> None:
        self.batches = list(token_loader(1, 20))
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        start, self.position = self.position, 0
        for index in range(start, len(self.batches)):
            self.position = (index + 1) % len(self.batches)
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def updates(method: str, lora: bool, folder: Path, batch_size: int = 4, **options: Any) -> dict[str, torch.Tensor]:
    """What fits of two tasks, an epoch each, do to every tuned weight; LoRA is merged and restarted in between."""
    module = build(lora)
    before = dense(module)
    callbacks = METHODS[method](calibration_data())
    for number in range(2):
        if lora:
            merge_lora_(module)
            restart_lora_(module, torch.Generator().manual_seed(number))
        trainer(folder / str(number), callbacks, max_epochs=1, enable_checkpointing=False, **options).fit(
            module, token_loader(number, 20, batch_size)
        )
    return {name: weight - before[name] for name, weight in dense(module).items()}


def same(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> bool:
    return expected.keys() == actual.keys() and all(torch.equal(w, actual[name]) for name, w in expected.items())
