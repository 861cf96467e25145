"""A misspelt or missing argument is answered in the class's name; parts follow their callback's settings."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, fit
from support.public_callbacks import PUBLIC

from hpa_lightning.callbacks import (
    CalibrationSettings,
    HarmoniousFusion,
    NullSpaceProjection,
    RegressionFusion,
    SafetyGate,
)


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_a_misspelt_argument_is_answered_in_the_class_s_name(kind: type) -> None:
    """Also where the constructor is a parent's."""
    names = list(inspect.signature(kind).parameters)
    wrong = f"{names[-1]}s" if names else "weight"
    with pytest.raises(TypeError, match=rf"^{kind.__name__} has no argument '{wrong}'; it takes ") as told:
        kind(**{wrong: 1})
    assert not names or f"; it takes {', '.join(names)}; did you mean '{names[-1]}'?" in str(told.value)


def test_a_class_of_one_s_own_answers_in_its_own_name() -> None:
    class Mine(HarmoniousFusion):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)

    with pytest.raises(TypeError, match=r"^Mine has no argument 'retentoin'; it takes .*; did you mean 'retention'\?"):
        Mine(retentoin=None)
    assert Mine(orthogonal=False).orthogonal is False


def test_settings_name_the_nearest_field() -> None:
    with pytest.raises(ValueError, match=r"calibration has \['safty_samples'\], .*; did you mean 'safety_samples'\?"):
        HarmoniousFusion(calibration={"safty_samples": 8})  # type: ignore[arg-type]


def test_a_missing_argument_is_told() -> None:
    with pytest.raises(TypeError, match=r"SafetyGate.__init__\(\) missing 1 required .* 'max_attack_success_rate'"):
        SafetyGate()  # type: ignore[call-arg]


def test_a_setting_that_is_changed_later_counts() -> None:
    fusion = RegressionFusion()
    fusion.target_modules, fusion.memory_weight, fusion.safety_data = ["q_proj"], 0.25, []
    fusion.calibration = CalibrationSettings(task_samples=3)
    assert fusion.layers.target_modules == ["q_proj"] and fusion.memory.memory_weight == 0.25
    assert fusion.calibrator.safety_data == [] and fusion.calibrator.settings.task_samples == 3


@pytest.mark.parametrize(
    ("given", "changed", "read"),
    [
        ({"budget": 0.05}, "budget", lambda projection: projection.output.budget),
        ({"stream_budget": 0.05}, "stream_budget", lambda projection: projection.output.budget),
        ({"share": "nearest"}, "budget", lambda projection: projection.output.budget),
        ({"budget": 0.05, "refusal_budget": 0.05}, "refusal_budget", lambda projection: projection.refusals.rise),
        ({"share": "refusals"}, "budget", lambda projection: projection.refusals.rise),
    ],
)
def test_a_budget_that_is_changed_later_counts(given: dict[str, Any], changed: str, read: Any) -> None:
    projection = NullSpaceProjection(**given)
    assert read(projection) == 0.05
    setattr(projection, changed, 0.01)
    assert read(projection) == 0.01
    if given.get("share") == "refusals":
        assert projection.output is not None and projection.output.budget == math.inf
    if "refusal_budget" in given:
        assert projection.output is not None and projection.output.budget == 0.05


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ({"budget": 0.05}, {"budget": -1.0}, "budget is -1.0; expected a finite number of at least 0"),
        ({"budget": 0.05}, {"budget": None, "stream_budget": 0.1}, "made with budget=0.05, stream_budget=None, and"),
        ({"budget": 0.05}, {"refusal_budget": 0.1}, "and has refusal_budget=0.1 now, which is another rule"),
        ({"share": "refusals"}, {"refusal_budget": 0.1}, "expected budget= alone"),
        ({"energy": 0.9}, {"memory_energy": 0.5}, "made with memory_energy=None, and has memory_energy=0.5 now"),
        ({"energy": 0.9}, {"energy": 1.5}, "energy is 1.5; expected a share of the trace"),
    ],
)
def test_a_share_that_becomes_another_one_is_refused(
    given: dict[str, Any], changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    projection = NullSpaceProjection(**given, **calibration_data())
    for name, value in changed.items():
        setattr(projection, name, value)
    with pytest.raises(ValueError, match=message):
        fit(foreign_module(OPTIMIZERS["adamw_decay"], True), [projection], tmp_path)


@pytest.mark.parametrize(
    ("given", "changed"),
    [({"memory_weight": 0.0}, {}), ({"memory_weight": 0.0}, {"energy": 0.8}), ({"safety_weight": 0.0}, {})],
)
def test_what_a_weight_of_0_leaves_out_is_no_other_share(
    given: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    projection = NullSpaceProjection(**given, **calibration_data())
    for name, value in changed.items():
        setattr(projection, name, value)
    fit(foreign_module(OPTIMIZERS["adamw_decay"], True), [projection], tmp_path, epochs=1)


@pytest.mark.parametrize("share", ["output", "nearest"])
def test_a_budget_that_is_changed_before_the_fit_is_the_fits(share: Any, tmp_path: Path) -> None:
    projection = NullSpaceProjection(share=share, budget=0.05, **calibration_data())
    projection.budget = 0.01
    fit(foreign_module(OPTIMIZERS["adamw_decay"], True), [projection], tmp_path, epochs=1)
    assert projection.output is not None and projection.output.change == 0.01
