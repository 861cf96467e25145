"""Every method's callbacks, for the tests that all of them must pass: one line for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L

from hpa_lightning.callbacks import (
    FocusPartition,
    HarmoniousFusion,
    MaskedFreezing,
    NullSpaceProjection,
    OrthogonalProjection,
    RegressionFusion,
    RetentionSettings,
)
from hpa_lightning.callbacks.baselines import (
    LinearMerging,
    ModelTailor,
    OrthogonalLoRA,
    RegLoRA,
    SafeDelta,
    SafetyLayerFreezing,
    TaskVectorMerging,
)

RETENTION = RetentionSettings(p_min=20.0, p_max=40.0)

METHODS: dict[str, Callable[[dict[str, Any]], list[L.Callback]]] = {
    "in_training": lambda data: [
        FocusPartition(probe_steps=2, retention=RETENTION, **data),
        MaskedFreezing(),
        OrthogonalProjection(),
    ],
    "post_training": lambda data: [HarmoniousFusion(retention=RETENTION, **data)],
    "post_training_rows": lambda data: [HarmoniousFusion(retention=replace(RETENTION, units="rows"), **data)],
    "null_space": lambda data: [NullSpaceProjection(energy=0.8, memory_weight=0.5, form="exact", **data)],
    "null_space_shares": lambda data: [NullSpaceProjection(energy=0.7, memory_energy=0.5, **data)],
    "null_space_sketch": lambda data: [NullSpaceProjection(energy=0.8, **data)],
    "null_space_output": lambda data: [NullSpaceProjection(budget=0.03, memory_weight=0.5, form="exact", **data)],
    "null_space_nearest": lambda data: [NullSpaceProjection(share="nearest", budget=0.1, **data)],
    "null_space_refusals": lambda data: [NullSpaceProjection(share="refusals", budget=0.01, **data)],
    "regression": lambda data: [RegressionFusion(safety_weight=2.0, memory_weight=0.5, form="exact", **data)],
    "regression_sketch": lambda data: [RegressionFusion(safety_weight=2.0, **data)],
    "linear_merging": lambda data: [LinearMerging(share=0.3)],
    "task_arithmetic": lambda data: [TaskVectorMerging(weight=0.7)],
    "ties": lambda data: [TaskVectorMerging("ties", density=0.6)],
    "dare": lambda data: [TaskVectorMerging("dare_linear", density=0.6)],
    "sppft": lambda data: [SafetyLayerFreezing(layers=(2, 2))],
    "safe_delta": lambda data: [SafeDelta(budget=100.0, **data)],
    "model_tailor": lambda data: [ModelTailor(calibration=data["calibration"])],
    "olora": lambda data: [OrthogonalLoRA()],
    "reglora": lambda data: [RegLoRA(percent=10.0)],
    "reglora_repeats": lambda data: [RegLoRA(percent=10.0, count_repeats=True)],
}
"""Name -> callbacks, made from ``safety_data`` and ``calibration``."""

LORA_ONLY: frozenset[str] = frozenset({"olora", "reglora", "reglora_repeats"})
"""Methods that are defined on adapters and refuse full-parameter tuning."""

TUNINGS = [(method, lora) for method in METHODS for lora in (True, False) if lora or method not in LORA_ONLY]
TUNING_IDS = [f"{method}-{'lora' if lora else 'full'}" for method, lora in TUNINGS]
