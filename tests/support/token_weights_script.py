"""Run by modules/test_token_weights.py: two accumulation windows of two processes; saves the gradients of every step.

token_weights_script.py FOLDER STRATEGY     STRATEGY: ddp, fsdp
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from support.foreign_module import quiet_trainer
from support.programs import report_fatal_signals
from support.tiny_mllms import picture, tiny_llava
from torch import Tensor
from torch.utils.data import DataLoader

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.fsdp import full_tensor

LENGTHS = (3, 33, 5, 1, 17, 2, 29, 8)  # of the answers, in words; one record in a batch


def records(lengths: tuple[int, ...] = LENGTHS) -> list[Record]:
    words = ("red", "green", "blue", "circle", "square")
    return [
        Record(
            f"r{index}",
            user_turn(f"Question {index}?", images=1)
            + assistant_turn(" ".join(words[(index + place) % 5] for place in range(length))),
            (picture(index),),
        )
        for index, length in enumerate(lengths)
    ]


class Gradients(L.Callback):
    """What callbacks before the step see, and what clipping leaves."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        trained = [(name, p) for name, p in pl_module.model.named_parameters() if p.grad is not None]
        self.steps.append({name: full_tensor(parameter.grad).clone() for name, parameter in trained})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"].detach()))


def fit(
    folder: Path,
    lengths: tuple[int, ...] = LENGTHS,
    callbacks: tuple[L.Callback, ...] = (),
    module: MLLMModule | None = None,
    batch_size: int = 1,
    **options: Any,
) -> Gradients:
    """One epoch over the records in order, with a rate of zero, so that all steps start from the same weights."""
    model, processor = tiny_llava()
    if module is None:
        module = MLLMModule.from_objects(model, processor, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    seen = Gradients()
    trainer = quiet_trainer(folder, [seen, *callbacks], max_epochs=1, use_distributed_sampler=False, **options)
    collate = MLLMCollator(processor).train
    data = records(lengths)
    # Lightning's own sampler for several processes shuffles.
    order = list(range(int(os.environ.get("LOCAL_RANK", "0")), len(data), trainer.world_size))
    trainer.fit(module, DataLoader(data, batch_size=batch_size, sampler=order, collate_fn=collate))
    return seen


if __name__ == "__main__":
    report_fatal_signals()
    torch.set_num_threads(1)
    sharded = sys.argv[2] == "fsdp"
    strategy: Any = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else "ddp"
    path = Path(sys.argv[1])
    found = fit(path, LENGTHS[:6], strategy=strategy, devices=2, accumulate_grad_batches=2)
    torch.save(found.steps, path / f"rank{torch.distributed.get_rank()}.pt")
