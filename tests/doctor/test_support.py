"""What is supported: strategies by name, and weights that are stored in a few bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from support.tiny_mllms import tiny_llava
from transformers import AwqConfig, BitsAndBytesConfig, FineGrainedFP8Config, Mxfp4Config
from transformers.utils.quantization_config import QuantizationConfigMixin

from hpa_lightning.cli import main
from hpa_lightning.doctor import FitPlan
from hpa_lightning.doctor.support import strategy_class, supported
from hpa_lightning.modules import LoraSettings, MLLMModule


def test_a_strategy_is_known_by_the_trainer_s_name_and_by_its_class() -> None:
    names = ["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp", "lightning.pytorch.strategies.DeepSpeedStrategy"]
    expected = [SingleDeviceStrategy, DDPStrategy, DDPStrategy, FSDPStrategy, DeepSpeedStrategy]
    assert [strategy_class(name) for name in names] == expected


@pytest.mark.parametrize(("name", "near"), [("dpp", "ddp"), ("DDPStrategi", "DDPStrategy"), ("zzz", None)])
def test_an_unknown_one_is_told_with_the_nearest(name: str, near: str | None) -> None:
    with pytest.raises(ValueError, match=f"no strategy '{name}'" + (f"; did you mean '{near}'" if near else "$")):
        strategy_class(name)


@pytest.mark.parametrize(
    ("settings", "part", "refused"),
    [
        (BitsAndBytesConfig(load_in_4bit=True), None, True),
        (AwqConfig(bits=4), "text_config", True),
        (FineGrainedFP8Config(), None, True),
        (FineGrainedFP8Config(dequantize=True), None, False),
        (Mxfp4Config(), None, False),
    ],
)
def test_quantised_weights_are_told(
    settings: QuantizationConfigMixin, part: str | None, refused: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By the entry that transformers writes beside such weights."""
    tiny_llava()[0].config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if part is None else config[part])["quantization_config"] = settings.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = supported(FitPlan.from_model(tmp_path, LoraSettings(rank=2)))
    (told,) = (verdict for verdict in found if "quantised by" in verdict.what)
    assert ("unquantised weights" in told.reason) is refused
    if refused:
        with pytest.raises(SystemExit):
            main(["doctor", "--model", str(tmp_path)])
        said = capsys.readouterr().out
        assert f"no   {told.what}: tuned layers" in said and "at most at one time" in said


@pytest.mark.parametrize(
    "settings",
    [Mxfp4Config(), FineGrainedFP8Config(dequantize=True), FineGrainedFP8Config()],
    ids=lambda one: repr(one)[:8],
)
def test_settings_of_a_loaded_model_are_told_as_those_of_a_file(settings: QuantizationConfigMixin) -> None:
    """They are objects there, and the method is a member of an enumeration."""
    model, _ = tiny_llava()
    model.config.quantization_config = settings
    plan = FitPlan(MLLMModule(model=model, processor=object(), lora=LoraSettings(rank=2)))
    (told,) = (verdict for verdict in supported(plan) if "quantised by" in verdict.what)
    assert told.what.split(";")[0] == f"weights quantised by {settings.quant_method.value}"
    assert bool(told.reason) is (type(settings) is FineGrainedFP8Config and not settings.dequantize)
