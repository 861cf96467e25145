"""A fit of a callback with calibration data on the foreign module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from support.foreign_module import token_loader
from support.resumed_fits import build, trainer


def fit_with(tmp_path: Path, *callbacks: L.Callback, tuned: L.LightningModule | None = None, **options: Any) -> Any:
    options = {"max_epochs": 1, "enable_checkpointing": False, **options}
    tuned = build(False) if tuned is None else tuned
    trainer(tmp_path, list(callbacks), **options).fit(tuned, token_loader(1, 20))
    return tuned
