"""Preference pairs about random pictures, and streams that end with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from support.tiny_mllms import evaluation_records, training_records

from hpa_lightning.data import CVITDataModule, EvaluationSet, Record, Task


def pairs(count: int, seed: int = 0, name: str = "p", text_only: bool = False) -> list[Record]:
    """Pairs whose rejected answers are longer than the chosen ones, and of different lengths."""
    records = training_records(count, seed, name, text_only_every=1 if text_only else 0)
    return [
        replace(record, rejected="yes it is the " + "green " * (index % 3 + 1)) for index, record in enumerate(records)
    ]


def stream_with_pairs(processor: Any, text_only: bool = False, **options: Any) -> CVITDataModule:
    """A task with answers, then one with pairs that nothing is scored of."""
    every = 1 if text_only else 0
    tasks = [
        Task(
            "first",
            train=training_records(8, seed=1, text_only_every=every),
            test=[
                replace(record, images=(), messages=({"role": "user", "content": record.messages[0]["content"][-1:]},))
                if text_only
                else record
                for record in evaluation_records(3, seed=51)
            ],
            max_new_tokens=3,
        ),
        Task("safety", train=pairs(12, seed=2, text_only=text_only), epochs=2, objective="preference"),
    ]
    sets = [] if text_only else [EvaluationSet("harmful", "safety", evaluation_records(3, seed=90), max_new_tokens=3)]
    settings: dict[str, Any] = {"train_batch_size": 4, "eval_batch_size": 4, "allow_overlap": True, **options}
    return CVITDataModule(tasks, sets, processor=processor, **settings)


def quiet(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A trainer on the CPU that prints and keeps nothing."""
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, **options}
    return L.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )
