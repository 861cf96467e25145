"""Settings, data and references for the fusion of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.model_folders import tuned, write
from support.tiny_mllms import tiny_llava, training_records

from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings

RETENTION = RetentionSettings(p_min=20.0, p_max=40.0)

CALIBRATION = CalibrationSettings(safety_samples=3, task_samples=4, batch_size=2)

SAFETY, TASK = training_records(3, 1, "s"), training_records(4, 2, "t")

SETTINGS: dict[str, Any] = {"retention": RETENTION, "calibration": CALIBRATION}

LAYERS = 3


def contents(folder: Path, without: str = "") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != without}


def write_pair(root: Path) -> tuple[Path, Path]:
    """The folders of a model before and after tuning, sharded differently."""
    model, processor = tiny_llava(LAYERS)
    before = write(root / "before", model, processor, "40KB")
    return before, write(root / "after", tuned(model), processor)


def copy(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
