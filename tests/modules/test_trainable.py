"""Which modules are tuned."""

from __future__ import annotations

import pytest
from support.tiny_mllms import tiny_llava

from hpa_lightning.modules import LoraSettings, MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_train_modules_choose_what_is_tuned(lora: LoraSettings | None) -> None:
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor, lora=lora, train_modules=["model.multi_modal_projector"])
    tuned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    projector = {name for name in tuned if "multi_modal_projector" in name}
    assert len(projector) == 4
    assert tuned - projector == ({name for name, _ in module.named_parameters() if "lora_" in name} if lora else set())
    whole = MLLMModule.from_objects(*tiny_llava(), freeze_vision=False)
    assert all(parameter.requires_grad for parameter in whole.parameters())
    assert all(submodule.training for submodule in whole.modules())
