"""Fits of a method on the foreign module: optimizers, settings of trainers, calibration data, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.foreign_module import quiet_trainer, token_loader
from support.method_registry import RETENTION
from torch import Tensor
from torch.distributed.tensor import DTensor

from hpa_lightning.callbacks import CalibrationSettings, FocusPartition
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
        "calibration": CalibrationSettings(8, 12, batch_size=4, safety_positions="all"),  # its batches have no labels
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
