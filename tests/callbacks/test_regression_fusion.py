"""RegressionFusion against dense float64 algebra on inputs gathered in whole forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.foreign_module import ForeignModule, foreign_module, token_loader
from support.layer_inputs import inputs_of
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit

from hpa_lightning.callbacks import RegressionFusion
from hpa_lightning.callbacks.hessian_memory import Form


def hessian(x: np.ndarray, damping: float = 0.01) -> np.ndarray:
    result = 2.0 / len(x) * x.T @ x
    result[np.diag_indices_from(result)] += damping * np.mean(np.diag(result))
    return result


def build(lora: bool) -> ForeignModule:
    """Nothing but the linear layers' weights is trained, so that putting them back is putting the model back."""
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    for name, parameter in module.named_parameters():
        if "_proj.weight" not in name and "lora" not in name:
            parameter.requires_grad_(False)
    return module


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_two_tasks_with_memory(lora: bool, form: Form, tmp_path: Path) -> None:
    """The second fit is bent away from the first one's inputs too."""
    module = build(lora)
    fusion = RegressionFusion(safety_weight=2.0, memory_weight=0.5, form=form, **calibration_data())
    safety_batches = list(token_loader(7, 8))
    task_batches = list(token_loader(1, 20))[:3]  # 12 samples
    memory: dict[str, np.ndarray] = {}
    for number in range(2):
        names = list(dense(module))
        before = {name: weight.clone().numpy() for name, weight in dense(module).items()}
        plain = build(lora)
        plain.load_state_dict(module.state_dict())
        safety = inputs_of(plain, safety_batches, names)
        plain.train()
        fit(plain, [], tmp_path / f"plain{number}")
        after = {name: weight.numpy() for name, weight in dense(plain).items()}
        task = inputs_of(plain, task_batches, names)

        fit(module, [fusion], tmp_path / f"fused{number}")
        for name, weight in dense(module).items():
            kept = 2.0 * hessian(safety[name]) + 0.5 * memory.get(name, 0.0)
            mine = hessian(task[name])
            expected = before[name] + (after[name] - before[name]) @ mine @ np.linalg.inv(mine + kept)
            if form == "exact" or number == 0:
                np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-4, atol=3e-6 if form == "exact" else 1e-5)
            # Layers are narrower than the rank: all that sketches lose is the rounding of what is remembered.
            moved = np.linalg.norm(expected - before[name])
            assert np.linalg.norm(weight.numpy() - expected) < 0.02 * moved
            memory[name] = memory.get(name, 0.0) + mine


@pytest.mark.parametrize("options", [{"safety_weight": -1.0}, {"memory_weight": float("inf")}])
def test_weights_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a finite number >= 0"):
        RegressionFusion(**options)
