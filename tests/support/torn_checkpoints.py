"""Checkpoints, whole and torn."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch


def save(path: Path, age: float, **callbacks: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    version = {"pytorch-lightning_version": "2.6.0"}
    torch.save({**version, "state_dict": {"w": torch.arange(1000)}, "callbacks": callbacks}, path)
    os.utime(path, (time.time() - age, time.time() - age))
