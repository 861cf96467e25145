"""Runs to export, and the logits of what was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from support.command_settings import write_configuration
from torch import Tensor
from transformers import AutoProcessor


def fitted(folder: Path, model: dict[str, Any], callbacks: list[Any], **trainer: Any) -> Path:
    """A run of two tasks of three steps; its checkpoints lie in `run/checkpoints`."""
    path = write_configuration(folder)
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"] = {"model": str(folder / "model"), "generation": {"max_new_tokens": 3}, **model}
    keep = {"dirpath": str(folder / "run" / "checkpoints"), "every_n_train_steps": 1, "save_top_k": -1}
    keep |= {"filename": "{step}", "save_last": True, "save_on_train_epoch_end": True}
    saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}
    config["trainer"] = {**config["trainer"], **trainer, "callbacks": [*callbacks, saver]}
    path.write_text(yaml.safe_dump(config))
    return path


SEQUENTIAL = {"class_path": "hpa_lightning.callbacks.SequentialTuning"}

EVALUATION = {"class_path": "hpa_lightning.callbacks.TaskEvaluation", "init_args": {"report": False}}


def inputs(folder: Path) -> dict[str, Tensor]:
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor.tokenizer(["what is in the picture", "red"], return_tensors="pt", padding=True)
    return {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}


def logits(model: Any, folder: Path) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(folder)).logits
