"""Fits with penalties on adapters, and the same penalty in the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.foreign_module import ForeignModule, foreign_module, quiet_trainer, token_loader

from hpa_lightning.callbacks.baselines import OrthogonalLoRA, RegLoRA
from hpa_lightning.callbacks.baselines.penalty import AdapterPenalty
from hpa_lightning.functional.adapter_penalty import unpack_mask
from hpa_lightning.modules.lora import lora_layers, merge_lora_, restart_lora_

SGD = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731


def penalties() -> dict[str, AdapterPenalty]:
    return {
        "olora": OrthogonalLoRA(weight=0.3),
        "olora_norms": OrthogonalLoRA(weight=0.3, norm_weight=0.2),
        "reglora": RegLoRA(percent=10.0, weight=20.0),
    }


def build(optimizer: Callable[..., torch.optim.Optimizer] = SGD) -> ForeignModule:
    module = foreign_module(optimizer, lora=True)
    for block in module.model.layers:
        block.dropout.p = 0.0
    return module


def fresh_adapters(module: ForeignModule, task: int) -> None:
    """What SequentialTuning does between two tasks."""
    merge_lora_(module)
    restart_lora_(module, torch.Generator().manual_seed(task))


def fit(module: ForeignModule, callbacks: list[L.Callback], folder: Path, task: int = 0, **options: Any) -> L.Trainer:
    trainer = quiet_trainer(folder, callbacks, max_epochs=1, **options)
    trainer.fit(module, token_loader(task, 24))
    return trainer


def in_the_loss(module: ForeignModule, penalty: AdapterPenalty) -> None:
    """The penalty by its formula, dense, through autograd, as a part of the module's own loss."""
    plain = module.training_step

    def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = plain(batch, batch_idx)
        with torch.autocast("cpu", enabled=False):
            terms = []
            for name, f in lora_layers(module):
                history = penalty.history.get(name)
                if isinstance(penalty, OrthogonalLoRA):
                    if history is not None:
                        terms.append(penalty.weight * (f.lora_a @ history.T).abs().sum())
                    # The authors' code takes torch.norm(p=2) of each matrix, which is not squared.
                    terms += [penalty.norm_weight * torch.norm(factor, p=2) for factor in (f.lora_a, f.lora_b)]
                else:
                    mask = unpack_mask(history, f.lora_a.shape[1]).bool()
                    terms.append(penalty.weight * (f.lora_b @ f.lora_a)[mask].abs().mean() / 12)
            return loss + sum(terms)

    module.training_step = training_step  # type: ignore[method-assign]
