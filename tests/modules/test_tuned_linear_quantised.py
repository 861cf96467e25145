"""A 4-bit base: what would write into it is refused before the fit has done anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from torch import nn

from hpa_lightning.callbacks import FocusPartition, HarmoniousFusion, SequentialTuning


class Linear4bit(nn.Linear):
    """As bitsandbytes stores it: two entries in a byte, in one column."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def stand_in(linear: nn.Linear) -> nn.Module:
    return Linear4bit(linear)


def real(linear: nn.Linear) -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    quantised = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None)
    quantised.load_state_dict(linear.state_dict())
    return quantised.to("cpu")


@pytest.mark.parametrize("quantise", [stand_in, real])
@pytest.mark.parametrize("callback", [HarmoniousFusion, FocusPartition, SequentialTuning])
def test_a_quantised_base_is_refused_with_the_way_out(callback: type, quantise: object, tmp_path: Path) -> None:
    module = foreign_module(torch.optim.SGD, lora=False)
    for block in module.model.layers:
        for name, linear in list(block.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(block, name, quantise(linear))
    module.model.is_loaded_in_4bit = quantise is real
    module.model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]), module.model)
    data = {} if callback is SequentialTuning else {"safety_data": token_loader(7, 8)}
    trainer = quiet_trainer(tmp_path, [callback(**data)], max_epochs=1)
    with pytest.raises(ValueError, match=r"q_proj.*Linear4bit.*uint8.*hpa-lightning fuse"):
        trainer.fit(module, token_loader(1, 8))
    assert trainer.global_step == 0
