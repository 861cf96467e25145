"""A stage's file: what was trained, rounded to bfloat16, added where it belongs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_mllms import tiny_timm

from hpa_lightning.modules import LoraSettings, TimmMLLM
from hpa_lightning.modules.lora import add_lora, lora_layers, merge_lora_
from hpa_lightning.modules.save_pretrained import merged_state_dict
from hpa_lightning.smol.stage_weights import apply_stage_, measured_at, save_stage


def trained(model: TimmMLLM) -> TimmMLLM:
    """A copy with adapters that do something, and another projector."""
    made = copy.deepcopy(model)
    add_lora(made, LoraSettings(rank=2, alpha=3.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for _, factors in lora_layers(made):
            factors.lora_b.normal_(std=0.1)
        for parameter in made.projector.parameters():
            parameter.normal_()
    return made


def test_the_file_gives_the_model_that_was_trained(tmp_path: Path) -> None:
    before, _ = tiny_timm()
    after = trained(before)
    save_stage(after, tmp_path / "a.safetensors", projector=True, measured={"harmful-text": 0.25})
    found = copy.deepcopy(before)
    apply_stage_(found, tmp_path / "a.safetensors")
    merge_lora_(after)
    wanted = merged_state_dict(after)
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0.02, atol=0.02)  # bfloat16 has 8 bits
        exact = torch.equal(tensor, before.state_dict()[name])
        assert exact != ("projector" in name or "_proj.weight" in name), name
    assert measured_at(tmp_path / "a.safetensors") == {"harmful-text": 0.25}
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("parts", ["adapters", "projector"])
def test_what_was_not_trained_is_not_stored(parts: str, tmp_path: Path) -> None:
    before, _ = tiny_timm()
    model = trained(before) if parts == "adapters" else before
    save_stage(model, tmp_path / "a.safetensors", projector=parts == "projector", measured={})
    keys = load_file(tmp_path / "a.safetensors").keys()
    assert keys and all(key.startswith("adapter." if parts == "adapters" else "projector.") for key in keys)


@pytest.mark.parametrize("fault", ["name", "shape", "half"])
def test_a_file_of_another_model(fault: str, tmp_path: Path) -> None:
    before, _ = tiny_timm()
    save_stage(trained(before), tmp_path / "a.safetensors", projector=True, measured={})
    content = load_file(tmp_path / "a.safetensors")
    key = next(name for name in content if name.endswith(".B"))
    if fault == "name":
        content = {name.replace("layers.0", "layers.77"): tensor for name, tensor in content.items()}
    elif fault == "shape":
        content["projector.0.weight"] = content["projector.0.weight"][:, :-1].contiguous()
    else:
        content[f"{key}.C"] = content[key].clone()
    save_file(content, tmp_path / "b.safetensors")
    found = copy.deepcopy(before)
    with pytest.raises(ValueError, match="does not fit the TimmMLLM: no place for"):
        apply_stage_(found, tmp_path / "b.safetensors")
    assert all(torch.equal(t, before.state_dict()[n]) for n, t in found.state_dict().items())
