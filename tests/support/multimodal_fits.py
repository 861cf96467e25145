"""Fits over a stream of two tasks on real architectures at a tiny size, with the methods of the registry."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.method_registry import METHODS
from support.tiny_mllms import evaluation_records, tiny_idefics3, tiny_llava, tiny_qwen, tiny_timm, training_records

from hpa_lightning.callbacks import CalibrationSettings
from hpa_lightning.data import CVITDataModule, EvaluationSet, MLLMCollator, ReplyOpenings, Task
from hpa_lightning.modules import LoraSettings, MLLMModule

OPENINGS = ReplyOpenings(("I cannot help", "No."))
MODELS = {"llava": tiny_llava, "qwen2_5_vl": tiny_qwen, "idefics3": tiny_idefics3, "timm": tiny_timm}


@cache
def processor(architecture: str) -> Any:
    """Nothing changes it: the tests of a file share it."""
    return MODELS[architecture]()[1]


def module(lora: bool = True, architecture: str = "llava", **options: Any) -> MLLMModule:
    model, own_processor = MODELS[architecture](layers=2)
    torch.manual_seed(0)
    return MLLMModule.from_objects(
        model,
        own_processor,
        lora=LoraSettings(rank=2, alpha=4.0) if lora else None,
        train_modules=None if lora else ["model.language_model"],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01),
        **options,
    )


def stream(architecture: str = "llava", evaluated: bool = False) -> CVITDataModule:
    tasks = [
        Task(
            name,
            train=training_records(12, seed=seed, name=name),
            test=evaluation_records(3, seed=seed + 50, name=name),
            epochs=epochs,
            max_new_tokens=3,
        )
        for seed, (name, epochs) in enumerate((("first", 1), ("second", 2)))
    ]
    safety = [
        EvaluationSet("harmful", "safety", evaluation_records(3, seed=90), max_new_tokens=3, openings=OPENINGS),
        EvaluationSet("harmless", "over_refusal", evaluation_records(3, seed=91), max_new_tokens=3),
    ]
    return CVITDataModule(
        tasks,
        safety if evaluated else None,
        processor=processor(architecture),
        train_batch_size=4,
        eval_batch_size=4,
        allow_overlap=True,
    )


def method(name: str, architecture: str = "llava") -> list[L.Callback]:
    """The callbacks of a method beside SequentialTuning; none for "sequential"."""
    collator = MLLMCollator(processor(architecture))
    data = {
        "safety_data": [collator.train(training_records(4, seed=70))],
        "calibration": CalibrationSettings(safety_samples=4, task_samples=4, batch_size=4),
    }
    return METHODS[name](data) if name != "sequential" else []


def trainer(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    options = {"logger": False, "enable_checkpointing": False, **options}
    return L.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
