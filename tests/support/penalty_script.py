"""Run by test_penalty.py in two processes: two tasks under both penalties; saves what each rank ended with."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from support.foreign_module import Tokens, foreign_module
from support.programs import report_fatal_signals
from torch import Tensor
from torch.utils.data import DataLoader

from hpa_lightning.callbacks.baselines import OrthogonalLoRA, RegLoRA
from hpa_lightning.modules.lora import lora_layers, merge_lora_, restart_lora_


def train(folder: Path, devices: int, weight: float) -> tuple[int, dict[str, Tensor]]:
    """The same samples in each step whatever the number of processes, and small weights, so that few signs turn."""
    module = foreign_module(lambda parameters: torch.optim.SGD(parameters, lr=0.02), lora=True)
    for block in module.model.layers:
        block.dropout.p = 0.0
    penalties = [OrthogonalLoRA(weight=0.05 * weight), RegLoRA(percent=10.0, weight=0.5 * weight)]
    for task in range(2):
        trainer = L.Trainer(
            accelerator="cpu",
            strategy="ddp" if devices > 1 else "auto",
            devices=devices,
            max_epochs=1,
            callbacks=penalties,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(Tokens(task, 24), batch_size=8 // devices))
        if task == 0:
            merge_lora_(module)
            restart_lora_(module, torch.Generator().manual_seed(1))
    ends = {name: torch.cat([f.lora_a.flatten(), f.lora_b.flatten()]).detach() for name, f in lora_layers(module)}
    return trainer.global_rank, ends


if __name__ == "__main__":
    report_fatal_signals()
    torch.set_num_threads(1)
    rank, result = train(Path(sys.argv[1]), devices=2, weight=1.0)
    torch.save(result, Path(sys.argv[1]) / f"rank{rank}.pt")
