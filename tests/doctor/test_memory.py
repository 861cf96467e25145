"""The estimate against what a run holds: gradients, optimizer, kept weights and Hessians, counted in the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from support.command_settings import with_calibration, write_configuration

from hpa_lightning.callbacks import NullSpaceProjection
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.doctor import FitPlan, estimate_memory, supported
from hpa_lightning.functional.hessian import HessianAccumulator
from hpa_lightning.lightning_commands import tuning_cli

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HELD: dict[str, int] = {}


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _leaves(tensors: Any) -> Iterator[torch.Tensor]:
    for one in tensors.values():
        yield from [one] if isinstance(one, torch.Tensor) else _leaves(one)


class Measures(L.Callback):
    """Counts what is held while the second task is trained, when everything is there."""

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        parameters = list(pl_module.parameters())
        HELD["weights"] = size([*parameters, *pl_module.buffers()])
        HELD["gradients"] = size(parameter.grad for parameter in parameters if parameter.grad is not None)
        state = [value for one in optimizer.state.values() for value in one.values()]
        HELD["optimizer"] = size(value for value in state if isinstance(value, torch.Tensor) and value.ndim)
        kept = {"anchors": "weights before the task", "aligned": "weights before the first task"}
        kept["memory"] = "Hessians of the earlier tasks"
        kept["spectra"] = "directions of the inputs that are kept away from, at most"
        for callback in trainer.callbacks:
            if isinstance(callback, NullSpaceProjection):
                HELD["bases"] = size(callback._bases.values())
            for part in callback.parts if isinstance(callback, TaskCallback) else ():
                for name, tensors in part.state_dict().items():
                    if name in kept and tensors:
                        # Energies, one number for each direction, are left out of the estimate.
                        leaves = (
                            _leaves(tensors) if name != "spectra" else (one["directions"] for one in tensors.values())
                        )
                        HELD[kept[name]] = size(leaves)


CALLBACKS = {
    "HarmoniousFusion": ["weights before the task"],
    "RegressionFusion": ["Hessians of the earlier tasks", "weights before the task"],
    "NullSpaceProjection": [
        "Hessians of the earlier tasks",
        "directions of the inputs that are kept away from, at most",
        "weights before the task",
    ],
    "baselines.LinearMerging": ["weights before the first task", "weights before the task"],
}


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_the_estimate_is_what_a_run_holds(name: str, lora: Any, tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"] |= {"lora": lora}
    config["data"]["init_args"]["max_length"] = 64
    callback: dict[str, Any] = {"class_path": f"hpa_lightning.callbacks.{name}"}
    if "Merging" not in name:
        callback["init_args"] = with_calibration(config, tmp_path)
    if name in ("RegressionFusion", "NullSpaceProjection"):
        callback["init_args"]["form"] = "exact"
    if name == "NullSpaceProjection":
        callback["init_args"]["share"] = "output"  # which holds every direction
    config["trainer"]["callbacks"] = [{"class_path": "hpa_lightning.callbacks.SequentialTuning"}, callback]
    path.write_text(yaml.safe_dump(config))
    plan = FitPlan.from_config(path)
    assert all(parameter.is_meta for parameter in plan.module.parameters()), "no weights are loaded"
    needs = {need.what: need.bytes for need in estimate_memory(plan)}
    assert not [verdict for verdict in supported(plan) if verdict.reason]

    HELD.clear()
    run = measured_fit(path)
    assert run.trainer.global_step == 6
    for what in ("weights", "gradients", "optimizer"):
        assert needs[what] == HELD[what], what
    for what in CALLBACKS[name]:
        if lora is not None and what == "weights before the task":
            assert what not in needs and what not in HELD
        else:
            assert needs[what] == HELD[what] > 0, what


def test_the_directions_of_shares_are_at_most_what_is_estimated(tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"]["max_length"] = 64
    projection: dict[str, Any] = {"class_path": "hpa_lightning.callbacks.NullSpaceProjection"}
    projection["init_args"] = with_calibration(config, tmp_path)
    config["trainer"]["callbacks"] = [{"class_path": "hpa_lightning.callbacks.SequentialTuning"}, projection]
    path.write_text(yaml.safe_dump(config))
    needs = {need.what: need.bytes for need in estimate_memory(FitPlan.from_config(path))}
    HELD.clear()
    measured_fit(path)
    assert 0 < HELD["bases"] <= needs["directions of the inputs that are kept away from, at most"]


def measured_fit(config: Path) -> Any:
    """The fit of a configuration with `Measures`, put in by hand: a test's module cannot be imported by name."""
    fit = L.Trainer.fit

    def measured(trainer: Any, *arguments: Any, **settings: Any) -> None:
        trainer.callbacks.append(Measures())
        fit(trainer, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L.Trainer, "fit", measured)
        return tuning_cli(["fit", "--config", str(config)])


def test_hessians_are_what_an_accumulator_holds() -> None:
    """Once the Gram matrix stands in the place of the rows; panels round the half up to whole ones."""
    columns = 1024
    hessian = HessianAccumulator(columns)
    for _ in range(3):
        hessian.update(torch.randn(1, 512, columns))
    held = {id(one): one for one in tensors_of(hessian)}.values()
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held}
    assert 4 * columns**2 <= sum(storages.values()) <= 1.7 * 4 * columns**2


def tensors_of(item: Any) -> list[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        return [item]
    if isinstance(item, list | tuple):
        return [tensor for one in item for tensor in tensors_of(one)]
    return [tensor for one in vars(item).values() for tensor in tensors_of(one)] if hasattr(item, "__dict__") else []
