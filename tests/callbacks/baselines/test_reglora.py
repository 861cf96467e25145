"""RegLoRA: repeated entries, and tasks of other layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.penalised_fits import build, fit, fresh_adapters

from hpa_lightning.callbacks.baselines import RegLoRA
from hpa_lightning.functional.adapter_penalty import unpack_mask
from hpa_lightning.modules.lora import lora_layers


def test_repeats_are_counted_where_asked(tmp_path: Path) -> None:
    union, repeated = (RegLoRA(percent=30.0, weight=0.0, count_repeats=repeats) for repeats in (False, True))
    for penalty in (union, repeated):
        module = build()
        for task in range(3):
            fit(module, [penalty], tmp_path, task=task)
            fresh_adapters(module, task + 1)
    for name, f in lora_layers(module):
        masks = [unpack_mask(mask, f.lora_a.shape[1]).bool() for mask in repeated.history[name]]
        assert len(masks) == 3
        assert torch.equal(torch.stack(masks).any(0), unpack_mask(union.history[name], f.lora_a.shape[1]).bool())
    saved = repeated.state_dict()
    restored = RegLoRA(percent=30.0, count_repeats=True)
    restored.load_state_dict(saved)
    assert all(torch.equal(restored.history[name], mask) for name, mask in repeated.history.items())


def test_other_layers_in_a_later_task_are_refused(tmp_path: Path) -> None:
    penalty, module = RegLoRA(), build()
    fit(module, [penalty], tmp_path)
    fresh_adapters(module, 1)
    penalty.target_modules = ["q_proj"]
    with pytest.raises(ValueError, match="tuned other layers"):
        fit(module, [penalty], tmp_path)
