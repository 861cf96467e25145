"""A misspelt or missing argument is answered in the class's name; parts follow their callback's settings."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from support.public_callbacks import PUBLIC

from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, RegressionFusion, SafetyGate


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
