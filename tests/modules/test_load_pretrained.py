"""A model from its configuration has random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.muted_modules import muted
from support.tiny_mllms import tiny_llava, training_records

from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_configuration_gives_random_weights(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    module = MLLMModule(config=model.config.to_dict(), processor=processor)
    assert type(module.model) is type(model)
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    from_folder = MLLMModule(config=str(tmp_path), dtype="bfloat16", attn_implementation="eager")
    assert from_folder.model.dtype == torch.bfloat16
    assert from_folder.model.config._attn_implementation == "eager"
    batch = MLLMCollator(from_folder.processor).train(training_records(1))
    assert torch.isfinite(muted(from_folder).training_step(batch, 0))  # float32 pixels, bfloat16 weights
