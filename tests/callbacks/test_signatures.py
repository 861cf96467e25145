"""What a user sees of every callback: its constructor, its docstring, what it says to a misspelt argument."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from typing import Any

import pytest
from support.public_callbacks import PUBLIC

import hpa_lightning.callbacks
from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, RegressionFusion, SafetyGate

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(hpa_lightning.callbacks.__path__, "hpa_lightning.callbacks.")
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


def test_settings_are_kept_under_their_names() -> None:
    """What a resume compares (:func:`hpa_lightning.callbacks.allow_changes.callback_settings`)."""
    for kind in PUBLIC:
        made = kind(0.1) if kind is SafetyGate else kind()
        missing = [name for name in inspect.signature(kind).parameters if not hasattr(made, name)]
        assert not missing, f"{kind.__name__} does not keep {missing}"
    assert RegressionFusion(safety_weight=3.0).safety_weight == 3.0
    kept = HarmoniousFusion(calibration={"task_samples": 5}).calibration  # type: ignore[arg-type]
    assert kept == CalibrationSettings(task_samples=5, safety_positions="all")
