"""Run by test_ddp.py in two processes: fits the foreign module and saves what each rank ended with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers_foreign import Tokens, foreign_module
from registry import METHODS
from test_guarantees import OPTIMIZERS, Watcher, calibration_data, dense
from torch.utils.data import DataLoader

from hpa_lightning.callbacks import FocusPartition


class Masks(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        (partition,) = [callback for callback in trainer.callbacks if isinstance(callback, FocusPartition)]
        self.masks = dict(partition.retained)


def main(folder: Path, method: str, lora: bool) -> None:
    torch.set_num_threads(1)
    callbacks = METHODS[method](calibration_data())
    extra: list[L.Callback] = []
    if method == "in_training":
        extra = [Watcher(callbacks[0]), Masks()]
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=2,
        callbacks=[*callbacks, *extra],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(Tokens(1, 24), batch_size=4))
    result: dict[str, Any] = {"weights": dense(module)}
    if extra:
        result |= {"masks": extra[1].masks, "worst": extra[0].worst_inner_product, "steps": extra[0].steps}
    torch.save(result, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "lora")
