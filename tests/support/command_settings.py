"""Settings for runs by the command line."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import yaml
from support.tiny_mllms import tiny_llava, training_records, write_llava_json


def with_calibration(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Callback settings for two calibration samples of each kind, and their data in ``config``.

    The model has random weights and refuses nothing: a judge takes whatever it says for a refusal.
    """
    (folder / "judge.json").write_text(json.dumps({"match": "anywhere", "phrases": sorted(set(string.printable[:94]))}))
    config["data"]["init_args"] |= {"harmful_calibration": str(folder / "harm.json"), "allow_overlap": True}
    config["data"]["init_args"] |= {"harmful_image_folder": str(folder / "images")}
    return {"calibration": {"safety_samples": 2, "task_samples": 2, "judge": str(folder / "judge.json")}}


def write_configuration(folder: Path) -> Path:
    """Two tasks of three steps, a safety set and an over-refusal set, one CSV logger without versions."""
    model, processor = tiny_llava()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    images = folder / "images"
    for index, name in enumerate("ab"):
        write_llava_json(folder / f"{name}.json", training_records(6, seed=index, name=name), images)
        write_llava_json(folder / f"{name}t.json", training_records(3, seed=9 + index, name=f"t{name}"), images)
    for index, name in enumerate(("harm", "fine")):
        write_llava_json(folder / f"{name}.json", training_records(2, seed=20 + index, name=name), images)
    logger = {"save_dir": str(folder / "run"), "name": "", "version": "", "flush_logs_every_n_steps": 1}
    keep = {"dirpath": str(folder / "checkpoints"), "every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "reload_dataloaders_every_n_epochs": 1,
            "log_every_n_steps": 1,
            "default_root_dir": str(folder),
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
            "callbacks": [
                {"class_path": "hpa_lightning.callbacks.SequentialTuning"},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
                {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
            ],
        },
        "model": {
            "class_path": "hpa_lightning.modules.MLLMModule",
            "init_args": {
                "model": str(folder / "model"),
                "lora": {"rank": 2},
                "lr_scheduler": {"name": "linear"},
                "generation": {"max_new_tokens": 3},
            },
        },
        "data": {
            "class_path": "hpa_lightning.data.CVITDataModule",
            "init_args": {
                "train_batch_size": 2,
                "eval_batch_size": 2,
                "tasks": [
                    {
                        "name": name,
                        "train": str(folder / f"{name}.json"),
                        "test": str(folder / f"{name}t.json"),
                        "image_folder": str(images),
                    }
                    for name in "ab"
                ],
                "safety_sets": [
                    {"name": name, "kind": kind, "data": str(folder / f"{name}.json"), "image_folder": str(images)}
                    for name, kind in (("harm", "safety"), ("fine", "over_refusal"))
                ],
            },
        },
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    return folder / "fit.yaml"
