"""A stream of two tasks in files, and fits on it that go on from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.tiny_mllms import tiny_llava, training_records, write_llava_json

from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, RetentionSettings
from hpa_lightning.data import CVITDataModule, EvaluationSet, Task
from hpa_lightning.modules import LoraSettings, MLLMModule

SETTINGS: dict[str, Any] = {
    "calibration": CalibrationSettings(safety_samples=2, task_samples=2, batch_size=2),
    "retention": RetentionSettings(p_min=10.0, p_max=10.0),
}


def write_stream(tmp_path: Path) -> Path:
    """Two tasks, a safety set and calibration data as files."""
    for seed, name in enumerate(("first", "second", "first_test", "second_test", "harmful", "calibration")):
        write_llava_json(tmp_path / f"{name}.json", training_records(6, seed, f"{name}-"), tmp_path / "images")
    return tmp_path


def rewrite(path: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def new_answer(rows: list[Any]) -> list[Any]:
    rows[3]["conversations"][-1]["value"] = "no"
    return rows


def data(folder: Path, **options: Any) -> CVITDataModule:
    def task(name: str) -> Task:
        train, test = (str(folder / f"{name}{part}.json") for part in ("", "_test"))
        return Task(name, train, test, epochs=1, max_new_tokens=2, image_folder=str(folder / "images"))

    safety = [EvaluationSet("harmful", "safety", str(folder / "harmful.json"), None, 2, str(folder / "images"))]
    options = {"safety_sets": safety, "harmful_calibration": str(folder / "calibration.json"), **options}
    return CVITDataModule(
        [task("first"), task("second")],
        processor=tiny_llava()[1],
        train_batch_size=3,
        allow_overlap=True,
        harmful_image_folder=str(folder / "images"),
        **options,
    )


def fit(folder: Path, callbacks: list[L.Callback], datamodule: Any, checkpoint: Any = None, **options: Any) -> Any:
    model, processor = tiny_llava(layers=2)
    rate = options.pop("rate", 1e-3)
    settings = {"lora": LoraSettings(rank=2), **options.pop("model", {})}
    module = MLLMModule.from_objects(
        model, processor, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate), **settings
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        default_root_dir=folder,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
    return trainer


def plain(folder: Path) -> CVITDataModule:
    """Without the model's own refusals, which a random model does not give."""
    return data(folder, harmful_calibration=None)


def method(processor: Any, **settings: Any) -> HarmoniousFusion:
    from hpa_lightning.data import MLLMCollator

    batch = MLLMCollator(processor).train(training_records(2, seed=70))
    return HarmoniousFusion(safety_data=[batch], **{**SETTINGS, **settings})
