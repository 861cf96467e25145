"""A fit before it begins: its model without weights, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from support.tiny_mllms import tiny_llava

from hpa_lightning.doctor import FitPlan
from hpa_lightning.modules import LoraSettings, MLLMModule, OSFSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llava()[0].save_pretrained(folder)
    return folder


def test_a_planned_model_has_every_parameter_and_no_memory(folder: Path) -> None:
    plan = FitPlan.from_model(folder, LoraSettings(rank=2), dtype="bfloat16")
    whole = {name: parameter.shape for name, parameter in tiny_llava()[0].named_parameters()}
    planned = {name: parameter for name, parameter in plan.module.model.named_parameters() if "lora" not in name}
    assert {name.replace(".base_layer", ""): parameter.shape for name, parameter in planned.items()} == whole
    assert all(parameter.is_meta for parameter in planned.values())
    assert {parameter.dtype for parameter in planned.values()} == {torch.bfloat16}
    trained = {name for name, parameter in plan.module.named_parameters() if parameter.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert plan.callbacks == [] and plan.strategy == "auto" and plan.max_length is None


def test_osf_is_planned_with_its_parts(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", minversion="0.21")
    config = {
        "model": {
            "class_path": "hpa_lightning.modules.MLLMModule",
            "init_args": {"model": str(folder), "osf": {"effective_rank": 0.75}},
        }
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    planned = FitPlan.from_config(tmp_path / "fit.yaml").module
    built = MLLMModule(str(folder), processor=object(), osf=OSFSettings(effective_rank=0.75))
    for kind in ("named_parameters", "named_buffers"):
        expected = {name: (tensor.shape, tensor.requires_grad) for name, tensor in getattr(built, kind)()}
        assert {n: (t.shape, t.requires_grad) for n, t in getattr(planned, kind)()} == expected
    assert all(parameter.is_meta for parameter in planned.parameters())


def test_a_type_that_torch_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float33'; expected float32, bfloat16, float16 or auto"):
        FitPlan.from_model(folder, dtype="float33")
    assert FitPlan.from_model(folder, dtype="auto").module.model.dtype == torch.float32
