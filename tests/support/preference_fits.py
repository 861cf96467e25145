"""Preference modules on real architectures, fits of them, and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.pairs import quiet
from support.tiny_mllms import tiny_llava, tiny_qwen, tiny_timm

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.modules import LoraSettings, PreferenceModule, PreferenceSettings

ARCHITECTURES = {"llava": tiny_llava, "qwen2_5_vl": tiny_qwen, "timm": tiny_timm}


def module(architecture: str = "llava", preference: PreferenceSettings | None = None, **options: Any) -> Any:
    model, processor = ARCHITECTURES[architecture]()
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "lora": LoraSettings(rank=2, alpha=4.0),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01),
        **options,
    }
    return PreferenceModule.from_objects(model, processor, preference=preference, **settings)


def fit(folder: Path, tuned: Any, data: Any, callbacks: tuple[L.Callback, ...] = (), **options: Any) -> L.Trainer:
    ckpt = options.pop("ckpt_path", None)
    trainer = quiet(folder, [SequentialTuning(), *callbacks], max_epochs=-1, **options)
    trainer.fit(tuned, data, ckpt_path=ckpt)
    return trainer


def weights(tuned: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tuned.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
