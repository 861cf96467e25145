"""SafeDelta against an independent float64 computation, and its two extremes under every training setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module, token_loader
from support.layer_inputs import inputs_of
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit
from support.surgeon_reference import accept, damped, factor_diagonal, surgery

from hpa_lightning.callbacks.baselines import SafeDelta
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.result_file import read_results

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate_and_clip": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "bf16_mixed": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_equals_the_reference(lora: bool, tmp_path: Path) -> None:
    """H through the model before the task; a budget of a part of the update; 12 and 24 columns in blocks of 16."""
    optimizer, budget = OPTIMIZERS["adamw_decay"], 30.0
    plain = foreign_module(optimizer, lora)
    names = list(dense(plain))
    before = {name: weight.clone().numpy() for name, weight in dense(plain).items()}
    fit(plain, [], tmp_path / "plain")
    after = {name: weight.clone().numpy() for name, weight in dense(plain).items()}
    with torch.no_grad():  # everything but the linear weights stays as trained
        for name in names:
            linear = plain.get_submodule(name)
            if lora:
                linear.lora_B["default"].weight.zero_()
            else:
                linear.weight.copy_(torch.from_numpy(before[name]))
    inputs = inputs_of(plain, list(token_loader(7, 8)), names)

    fused = foreign_module(optimizer, lora)
    fit(fused, [SafeDelta(budget=budget, block_size=16, **calibration_data())], tmp_path / "fused")
    result = {name: weight.numpy() for name, weight in dense(fused).items()}

    events = [e for e in read_results(tmp_path / "fused" / "results.jsonl") if e["event"] == "fusion"]
    assert [event["module"] for event in events] == names
    shares = []
    for event, name in zip(events, names, strict=True):
        hessian = damped(inputs[name])
        mask = accept(after[name] - before[name], factor_diagonal(hessian), budget, 15.0, 16)
        expected = surgery(before[name], after[name], mask, hessian)
        np.testing.assert_allclose(result[name], expected, rtol=2e-5, atol=2e-6)
        assert event["kept_share"] == pytest.approx(mask.mean())
        assert event["layer"] == int(name.split(".layers.")[1].split(".")[0]) + 1
        assert (event["step"], event["task"]) == (0, "fit")
        shares.append(mask.mean())
    assert min(shares) < 0.6 and 0.1 < np.mean(shares) < 0.84, "the budget binds somewhere and not everywhere"
    if lora:
        assert all(not factors.lora_b.any() for _, factors in lora_layers(fused))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_extremes_are_the_aligned_and_the_tuned_weights(lora: bool, setting: str, tmp_path: Path) -> None:
    results = []
    for callbacks in ([], [SafeDelta(0.0, **calibration_data())], [SafeDelta(math.inf, **calibration_data())]):
        module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
        if not results:
            results.append({name: weight.clone() for name, weight in dense(module).items()})
        fit(module, callbacks, tmp_path, **SETTINGS[setting])
        results.append(dense(module))
    before, tuned, nothing, everything = results
    for name, weight in before.items():
        assert torch.equal(nothing[name], weight)
        # A merged LoRA weight is rounded once to fp32.
        torch.testing.assert_close(everything[name], tuned[name], rtol=1e-6 if lora else 0, atol=1e-7 if lora else 0)
        assert not torch.equal(tuned[name], weight)


def test_safety_data_are_required(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="safety_data"):
        fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [SafeDelta()], tmp_path)


@pytest.mark.parametrize(
    "setting",
    [{"budget": -1.0}, {"protected_percent": 120.0}, {"block_size": 0}, {"columns_at_once": 3}, {"columns_at_once": 0}],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        SafeDelta(**setting)


@pytest.mark.parametrize(
    ("budget", "said"),
    [(0.0, "no entry of all 12 linear layers"), (math.inf, "every entry of all 12 linear layers"), (30.0, None)],
)
def test_a_budget_that_changes_nothing_or_takes_all_back_is_told(
    budget: float, said: str | None, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(foreign_module(OPTIMIZERS["adamw_decay"], lora=True), [SafeDelta(budget, **calibration_data())], tmp_path)
    told = [str(one.message) for one in recwarn if "SafeDelta: after task 'fit'" in str(one.message)]
    assert len(told) == (said is not None) and all(str(said) in text and "kept_share" in text for text in told)
