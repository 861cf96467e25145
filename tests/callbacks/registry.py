"""Every method's callbacks, for the tests that all of them must pass: one line for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from hpa_lightning.callbacks import (
    FocusPartition,
    HarmoniousFusion,
    MaskedFreezing,
    OrthogonalProjection,
    RetentionSettings,
)

RETENTION = RetentionSettings(p_min=20.0, p_max=40.0)

METHODS: dict[str, Callable[[dict[str, Any]], list[L.Callback]]] = {
    "in_training": lambda data: [
        FocusPartition(probe_steps=2, retention=RETENTION, **data),
        MaskedFreezing(),
        OrthogonalProjection(),
    ],
    "post_training": lambda data: [HarmoniousFusion(retention=RETENTION, **data)],
}
"""Name -> callbacks, made from ``safety_data`` and ``calibration``."""

LORA_ONLY: frozenset[str] = frozenset()
"""Methods that are defined on adapters and refuse full-parameter tuning."""

TUNINGS = [(method, lora) for method in METHODS for lora in (True, False) if lora or method not in LORA_ONLY]
TUNING_IDS = [f"{method}-{'lora' if lora else 'full'}" for method, lora in TUNINGS]
