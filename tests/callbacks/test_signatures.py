"""What a user sees of every callback: its constructor, its docstring, what it says to a misspelt argument."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from typing import Any

import lightning as L
import pytest

import hpa_lightning.callbacks
from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, RegressionFusion, SafetyGate, baselines

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(hpa_lightning.callbacks.__path__, "hpa_lightning.callbacks.")
]
PUBLIC = [
    found
    for package in (hpa_lightning.callbacks, baselines)
    for found in (getattr(package, name) for name in package.__all__)
    if inspect.isclass(found) and issubclass(found, L.Callback) and found is not hpa_lightning.callbacks.TaskCallback
]


def ours(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("hpa_lightning.")]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.removeprefix("hpa_lightning.callbacks."))
def test_examples_run(module: Any) -> None:
    """Under the name that users import: a module of `callbacks/` that pytest imports by its path is another one."""
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_argument_is_named_and_documented(kind: type) -> None:
    documented = kind.__doc__ or ""
    for name, parameter in inspect.signature(kind).parameters.items():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, f"{name} is not explicit"
        assert re.search(rf"^\s+([\w, ]+, )?{name}(, [\w, ]+)?: ", documented, re.MULTILINE), (
            f"{name} is not documented"
        )
    assert ">>> " in documented, "there is no example"
    assert "Source" in documented or "Hooks" in documented
    assert len(ours(kind)) <= 3


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


def test_settings_are_kept_under_their_names() -> None:
    """What a resume compares (:func:`hpa_lightning.callbacks.allow_changes.callback_settings`)."""
    for kind in PUBLIC:
        made = kind(0.1) if kind is SafetyGate else kind()
        missing = [name for name in inspect.signature(kind).parameters if not hasattr(made, name)]
        assert not missing, f"{kind.__name__} does not keep {missing}"
    assert RegressionFusion(safety_weight=3.0).safety_weight == 3.0
    assert HarmoniousFusion(calibration={"task_samples": 5}).calibration == CalibrationSettings(task_samples=5)  # type: ignore[arg-type]


def test_a_setting_that_is_changed_later_counts() -> None:
    fusion = RegressionFusion()
    fusion.target_modules, fusion.memory_weight, fusion.safety_data = ["q_proj"], 0.25, []
    fusion.calibration = CalibrationSettings(task_samples=3)
    assert fusion.layers.target_modules == ["q_proj"] and fusion.memory.memory_weight == 0.25
    assert fusion.calibrator.safety_data == [] and fusion.calibrator.settings.task_samples == 3
