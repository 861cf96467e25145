"""A method of somebody else, in a file of its own outside the package, passes the guarantee tests of the registry."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.foreign_module import token_loader
from support.layer_inputs import inputs_of, inverse_diagonal
from support.method_fits import calibration_data, dense
from support.method_guarantees import (
    STEPS,
    assert_accumulated_batches_are_one_larger_batch,
    assert_half_precision_does_nearly_the_same,
    assert_resume_equals_an_uninterrupted_run,
)
from support.method_registry import METHODS
from support.resumed_fits import build, trainer, updates

FILE = Path(__file__).parents[1] / "support" / "damped_update.py"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file, imported as a module that is on nobody's path, and its one line in the registry."""
    spec = importlib.util.spec_from_file_location("somebodys_methods", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "somebodys_methods", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "plugin", lambda data: [module.DampedUpdate(strength=2.0, **data)])
    return module


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("step", STEPS, ids=STEPS.values())
def test_it_resumes_bit_for_bit(plugin: Any, lora: bool, step: int, fits: Path, tmp_path: Path) -> None:
    assert_resume_equals_an_uninterrupted_run("plugin", lora, step, fits, tmp_path)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_accumulates(plugin: Any, lora: bool, fits: Path, tmp_path: Path) -> None:
    assert_accumulated_batches_are_one_larger_batch("plugin", lora, fits, tmp_path)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_works_in_half_precision(plugin: Any, lora: bool, fits: Path, tmp_path: Path) -> None:
    assert_half_precision_does_nearly_the_same("plugin", lora, fits, tmp_path)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_does_what_its_function_says(plugin: Any, lora: bool, tmp_path: Path) -> None:
    """Against NumPy, with Hessians from the model as trained."""
    plain = build(lora)
    names, before = list(dense(plain)), {name: weight.clone() for name, weight in dense(plain).items()}
    options = {"max_epochs": 1, "enable_checkpointing": False}
    trainer(tmp_path / "plain", [], **options).fit(plain, token_loader(1, 20))
    inputs = inputs_of(plain, list(token_loader(7, 8)), names)
    fused = build(lora)
    trainer(tmp_path / "fused", METHODS["plugin"](calibration_data()), **options).fit(fused, token_loader(1, 20))
    result = dense(fused)
    for name, after in dense(plain).items():
        h = torch.from_numpy(inverse_diagonal(inputs[name]))
        expected = before[name] + h / (h + 2.0 * h.mean()) * (after - before[name])
        torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=1e-6)
    assert sum(float(update.abs().sum()) for update in updates("plugin", lora, tmp_path / "two").values()) > 0


def test_it_answers_in_its_own_name(plugin: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^DampedUpdate has no argument 'strenth'; it takes .*; did you mean 'strength'\?"
    ):
        plugin.DampedUpdate(strenth=1.0)
