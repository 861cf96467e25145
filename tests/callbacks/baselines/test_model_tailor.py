"""ModelTailor against an independent float64 computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.foreign_module import foreign_module, token_loader
from support.layer_inputs import inputs_of
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit
from support.surgeon_reference import damped, factor_diagonal, patch, surgery

from hpa_lightning.callbacks.baselines import ModelTailor
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.result_file import read_results

CALIBRATION = calibration_data()["calibration"]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_equals_the_reference(lora: bool, tmp_path: Path) -> None:
    """H through the tuned model on the first 12 task samples; 12 and 24 columns in blocks of 16."""
    optimizer = OPTIMIZERS["adamw_decay"]
    plain = foreign_module(optimizer, lora)
    before = {name: weight.clone().numpy() for name, weight in dense(plain).items()}
    fit(plain, [], tmp_path / "plain")
    after = {name: weight.numpy() for name, weight in dense(plain).items()}
    inputs = inputs_of(plain, list(token_loader(1, 20))[:3], list(after))

    fused = foreign_module(optimizer, lora)
    fit(fused, [ModelTailor(30.0, block_size=16, calibration=CALIBRATION)], tmp_path / "fused")
    result = {name: weight.numpy() for name, weight in dense(fused).items()}

    events = [e for e in read_results(tmp_path / "fused" / "results.jsonl") if e["event"] == "fusion"]
    assert [event["module"] for event in events] == list(after)
    for event, name in zip(events, after, strict=True):
        hessian = damped(inputs[name])
        mask, _ = patch(before[name], after[name], factor_diagonal(hessian), 30.0, 0.5, 16)
        expected = surgery(after[name], before[name], ~mask, hessian)
        np.testing.assert_allclose(result[name], expected, rtol=2e-5, atol=2e-6)
        assert np.array_equal(result[name][~mask], before[name][~mask])
        assert event["kept_share"] == pytest.approx(mask.mean()) and 0.28 < mask.mean() < 0.32
    if lora:
        assert all(not factors.lora_b.any() for _, factors in lora_layers(fused))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_keeping_nothing_returns_to_the_weights_before(lora: bool, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    before = {name: weight.clone() for name, weight in dense(module).items()}
    fit(module, [ModelTailor(0.0, calibration=CALIBRATION)], tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in dense(module).items())


def test_the_options_of_the_public_code_act_on_late_blocks_alone(tmp_path: Path) -> None:
    optimizer = OPTIMIZERS["adamw_decay"]
    results = {}
    for name, callbacks in {
        "plain": [],
        "late": [ModelTailor(30.0, first_block=3, calibration=CALIBRATION)],
        "public": [
            ModelTailor(
                30.0, 0.8, 16, first_block=3, scores_after_compensation=True, compensation=-1.0, calibration=CALIBRATION
            )
        ],
    }.items():
        module = foreign_module(optimizer, False)
        fit(module, callbacks, tmp_path / name)
        results[name] = dense(module)
    for name, weight in results["plain"].items():
        treated = "layers.2." in name
        assert torch.equal(results["late"][name], weight) != treated
        assert torch.equal(results["public"][name], results["late"][name]) != treated
    events = [e for e in read_results(tmp_path / "late" / "results.jsonl") if e["event"] == "fusion"]
    assert {event["layer"] for event in events} == {3}
    with pytest.raises(ValueError, match="first_block is 4; the last decoder block with tuned layers is 3"):
        fit(foreign_module(optimizer, False), [ModelTailor(first_block=4, calibration=CALIBRATION)], tmp_path / "none")


@pytest.mark.parametrize(
    "setting",
    [{"keep_percent": 120.0}, {"mix": -0.5}, {"block_size": 0}, {"first_block": 0}, {"compensation": float("nan")}],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        ModelTailor(**setting)
