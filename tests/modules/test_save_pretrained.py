"""An export is one folder that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.muted_modules import muted
from support.tiny_mllms import tiny_idefics3, tiny_llava, tiny_qwen, tiny_timm, training_records
from transformers import AutoModelForImageTextToText

from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import LoraSettings, MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BUILDERS = [tiny_llava, tiny_qwen, tiny_idefics3, tiny_timm]


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def objects(request: Any) -> Any:
    return request.param()


def test_export_is_one_folder_that_loads(objects: Any, tmp_path: Path) -> None:
    module = muted(MLLMModule.from_objects(*objects, lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    module.eval()
    module.export(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert not any("lora" in name for name, _ in again.named_parameters())
    loaded = MLLMModule(model=str(tmp_path))
    assert {type(module) for module in again.modules()} == {type(module) for module in loaded.model.modules()}
    batch = MLLMCollator(loaded.processor).train(training_records(2))
    own = MLLMCollator(module.processor).train(training_records(2))
    # transformers may load the same image processor with another backend, which resizes a little differently.
    backends = {type(getattr(processor, "image_processor", None)) for processor in (loaded.processor, module.processor)}
    exact = [key for key in own if key != "pixel_values" or len(backends) == 1]
    assert all(torch.equal(batch[key], own[key]) for key in exact) and {"input_ids", "labels"} <= set(exact)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, module.model(**batch).logits, rtol=1e-4, atol=1e-4)
        assert (module.model(**batch).logits - objects_logits(objects, batch)).abs().max() > 1e-3


def objects_logits(objects: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits without the adapters."""
    model = objects[0]
    scales = [m for m in model.modules() if hasattr(m, "lora_B")]
    for layer in scales:
        layer.lora_B["default"].weight.data.zero_()
    return model(**batch).logits
