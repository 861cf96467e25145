"""NullSpaceProjection: safety inputs see no update, after every step and with every optimizer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from support.foreign_module import foreign_module, token_loader
from support.layer_inputs import inputs_of
from support.method_fits import OPTIMIZERS, TRAINERS, calibration_data, dense, fit

from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, NullSpaceProjection, RegressionFusion
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.functional import InputSketch


def basis_of(matrix: np.ndarray, energy: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(-values)
    count = int(np.searchsorted(np.cumsum(values[order]) / values.sum(), energy)) + 1
    return vectors[:, order[:count]]


def hessian(x: np.ndarray) -> np.ndarray:
    result = 2.0 / len(x) * x.T @ x
    result[np.diag_indices_from(result)] += 0.01 * np.mean(np.diag(result))
    return result


class Watcher(L.Callback):
    """Measures how far the update reaches into the bases, after every step, by dense float64 algebra."""

    def __init__(self, before: dict[str, Any], bases: dict[str, np.ndarray]) -> None:
        self.before, self.bases = before, bases
        self.worst, self.moved = 0.0, 0.0

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        for name, weight in dense(pl_module).items():
            update = (weight - self.before[name]).numpy()
            if np.abs(update).max() > 0:
                reach = np.linalg.norm(update @ self.bases[name]) / np.linalg.norm(update)
                self.worst = max(self.worst, float(reach))
                self.moved = max(self.moved, float(np.abs(update).max()))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adamw_decay"])
# A bfloat16 weight is rounded at its own size: no bound on the direction of a small update holds.
@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name not in ("bf16_true", "fp16_mixed")])
def test_safety_inputs_see_no_update(lora: bool, optimizer: str, trainer: str, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS[optimizer], lora)
    before = {name: weight.clone() for name, weight in dense(module).items()}
    safety = inputs_of(module, list(token_loader(7, 8)), list(before))
    module.train()
    # Autocast calibrates in bf16; the directions are then compared with those of the callback itself.
    exact = "precision" not in TRAINERS[trainer]
    projection = NullSpaceProjection(energy=0.8, form="exact", **calibration_data())
    watcher = Watcher(before, {name: basis_of(hessian(x), 0.8) for name, x in safety.items()})

    class Compare(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            for name, first in projection._first.items():
                own = projection._bases[first].double().numpy()
                if exact:
                    overlap = np.linalg.norm(watcher.bases[name].T @ own) ** 2
                    assert own.shape == watcher.bases[name].shape and overlap == pytest.approx(own.shape[1], rel=1e-4)
                watcher.bases[name] = own

    fit(module, [projection, Compare(), watcher], tmp_path, **TRAINERS[trainer])
    assert watcher.moved > 1e-3, "nothing was trained"
    # A full weight is rounded at its own size, which is large beside a small update.
    assert watcher.worst < (1e-5 if lora else 1e-4)


def test_the_second_task_stays_out_of_the_first_ones_inputs_too(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    projection = NullSpaceProjection(
        energy=0.8, safety_weight=2.0, memory_weight=0.5, form="exact", **calibration_data()
    )
    fit(module, [projection], tmp_path / "first")
    names = list(dense(module))
    task = inputs_of(module, list(token_loader(1, 20))[:3], names)  # 12 samples
    before = {name: weight.clone() for name, weight in dense(module).items()}
    # The second fit starts from the first one's adapter, as a plain fit does.
    safety = inputs_of(module, list(token_loader(7, 8)), names)
    module.train()
    seen: dict[str, np.ndarray] = {}

    class Keep(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.update({name: projection._bases[first].double().numpy() for name, first in projection._first.items()})

    fit(module, [projection, Keep()], tmp_path / "second")
    for name in names:
        expected = basis_of(2.0 * hessian(safety[name]) + 0.5 * hessian(task[name]), 0.8)
        assert seen[name].shape == expected.shape
        assert np.linalg.norm(expected.T @ seen[name]) ** 2 == pytest.approx(expected.shape[1], rel=1e-3)
    assert any(not torch.equal(before[name], weight) for name, weight in dense(module).items())


@pytest.mark.parametrize(
    "options", [{"energy": 0.0}, {"energy": 0.9, "safety_weight": 0.0}], ids=["no_energy", "no_safety"]
)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_with_nothing_to_keep_training_is_plain(options: dict[str, float], lora: bool, tmp_path: Path) -> None:
    """Before anything is remembered, a projection without safety inputs has no direction to leave."""
    plain, projected = (foreign_module(OPTIMIZERS["adamw_decay"], lora) for _ in range(2))
    fit(plain, [], tmp_path / "plain")
    fit(projected, [NullSpaceProjection(**options, **calibration_data())], tmp_path / "projected")
    for name, weight in dense(plain).items():
        # A full weight is taken apart and put together again after every step.
        torch.testing.assert_close(dense(projected)[name], weight, rtol=0, atol=0 if lora else 1e-5)


@pytest.mark.parametrize("options", [{"energy": 1.2}, {"safety_weight": float("nan")}, {"memory_weight": -1.0}])
@pytest.mark.parametrize("one_share", [True, False])
def test_settings_are_checked(options: dict[str, float], one_share: bool) -> None:
    with pytest.raises(ValueError, match="; expected "):
        NullSpaceProjection(**({"energy": 0.7} if one_share else {}) | options)


def test_a_rank_that_cuts_the_energy_short_is_told(tmp_path: Path) -> None:
    """Eight rows hold most of these inputs and not all that is asked for; no layer has that few columns."""
    module, told = foreign_module(OPTIMIZERS["adamw_decay"], True), []
    for energy in (1.0, 0.3):
        projection = NullSpaceProjection(energy=energy, rank=8, **calibration_data())
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            fit(module, [projection], tmp_path / str(energy))
        told.append([str(one.message) for one in found if "Set a larger rank" in str(one.message)])
    assert len(told[0]) == 1 and "energy=1.0" in told[0][0] and not told[1]


class Bases(L.Callback):
    """Keeps the directions that each layer's update leaves."""

    def __init__(self, projection: NullSpaceProjection) -> None:
        self.projection = projection
        self.seen: dict[str, np.ndarray] = {}

    def on_train_batch_end(self, *args: Any) -> None:
        first, bases = self.projection._first, self.projection._bases
        self.seen = {name: bases[first[name]].double().numpy() for name in first}


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("memory_energy", [0.5, None])
def test_safety_and_earlier_tasks_keep_a_share_each(form: Any, memory_energy: float | None, tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    weight = {"memory_energy": memory_energy} if memory_energy is not None else {"memory_weight": 100.0}
    projection = NullSpaceProjection(energy=0.95, form=form, **weight, **calibration_data())
    fit(module, [projection], tmp_path)
    names = list(dense(module))
    safety = inputs_of(module, list(token_loader(7, 8)), names)
    earlier = inputs_of(module, list(token_loader(1, 20))[:3], names)
    module.train()
    bases = Bases(projection)
    fit(module, [projection, bases], tmp_path)

    def held(x: np.ndarray, basis: np.ndarray) -> float:
        return float(np.square(x @ basis).sum() / np.square(x).sum())

    shares = [held(safety[name], bases.seen[name]) for name in names]
    if memory_energy is None:  # a heavy memory takes the sum for itself
        assert min(shares) < 0.95 - 0.02
    else:
        assert min(shares) >= 0.95 - 0.005  # the damped Hessian's share, and a bfloat16 basis
        assert min(held(earlier[name], bases.seen[name]) for name in names) >= 0.5 - 0.005
        for basis in bases.seen.values():
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)


def test_two_shares_have_no_more_directions_than_the_rank(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    projection = NullSpaceProjection(energy=0.6, memory_energy=0.6, rank=6, **calibration_data())
    bases = Bases(projection)
    fit(module, [projection], tmp_path)
    module.train()
    with pytest.warns(UserWarning, match=r"rank=6 .*for energy=0.6 and memory_energy=0.6 .*Set a larger rank"):
        fit(module, [projection, bases], tmp_path)
    assert max(basis.shape[1] for basis in bases.seen.values()) == 6


def test_beyond_the_rank_the_strongest_directions_of_both_are_kept() -> None:
    """Each kind of inputs counts as much as the other, however large: the weakest direction of each is left out."""
    energies = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    projection = NullSpaceProjection(energy=1.0, memory_energy=1.0, rank=6, **calibration_data())
    earlier = InputSketch.from_gram(torch.diag(energies.flip(0)), 6)
    projection.memory.inputs.add({"layer": earlier}, {"layer": "layer"}, 6)
    safety = InputSketch.from_gram(torch.diag(100 * energies), 6)
    basis, enough = projection._basis("layer", safety, torch.device("cpu"))
    held = (basis @ basis.T).diagonal()
    torch.testing.assert_close(held, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), rtol=0, atol=1e-3)
    assert not enough


def test_the_default_needs_labels_and_says_so(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    given = {"safety_data": token_loader(7, 8), "calibration": {"safety_samples": 8}}
    before = dense(module)
    with pytest.raises(ValueError, match=r"no labels of shape .*'safety_positions': 'all'\} counts every"):
        fit(module, [NullSpaceProjection(**given)], tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in dense(module).items())


def test_settings_that_are_changed_later_are_the_same_as_the_constructors() -> None:
    projection = NullSpaceProjection()
    projection.calibration = {"safety_samples": 4}  # type: ignore[assignment]
    assert projection.calibrator.settings == CalibrationSettings(4, safety_positions="answers")


def test_a_checkpoint_of_another_share_is_told(tmp_path: Path) -> None:
    """Where `AllowChanges` lets it pass: within a task it does not hold what is left."""
    module, states = foreign_module(OPTIMIZERS["adamw_decay"], True), {}
    for name, options in {"energy": {"energy": 0.9}, "budget": {"budget": 0.1}}.items():
        projection = NullSpaceProjection(**options, **calibration_data())

        class Saves(L.Callback):
            def on_train_batch_end(self, *_: Any, name: str = name, saved: Any = projection) -> None:
                states[name] = saved.state_dict()

        fit(module, [projection, Saves()], tmp_path)
    of_energy, of_budget = NullSpaceProjection(energy=0.9), NullSpaceProjection(budget=0.1)
    of_energy.load_state_dict(states["budget"])
    of_budget.load_state_dict(states["energy"])
    for one in (of_energy, of_budget):
        with pytest.raises(ValueError, match="or with another share"):
            one.on_task_resume(L.Trainer(logger=False, accelerator="cpu"), module, CurrentTask(0, "fit", None))


def test_a_task_that_may_change_nothing_is_told(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], True)
    told = pytest.warns(UserWarning, match=r"task 0 \(fit\) may change nothing: all \d+ input directions")
    with told, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*something other than the optimizer")  # rounding is not told
        fit(module, [NullSpaceProjection(energy=1.0, form="exact", **calibration_data())], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safety_weight": 0.0, "memory_weight": 0.0}, "leave nothing to protect"),
        ({"energy": 0.9, "memory_energy": 1.5}, r"memory_energy is 1.5; expected a share of the trace in \[0, 1\]"),
        ({"energy": 0.9, "memory_energy": 0.5, "memory_weight": 0.0}, r"memory_weight=0 with memory_energy=0\.5"),
        ({"energy": 0.9, "memory_energy": 0.5, "safety_weight": 0.0}, r"safety_weight=0 with energy=0\.9"),
        ({"safety_weight": 2.0}, r"safety_weight is 2.0, and .*set energy= alone"),
        ({"share": "output", "memory_energy": 0.5}, r"share='output' with memory_energy=0.5; expected a budget"),
    ],
)
def test_what_two_shares_do_not_go_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NullSpaceProjection(**options)


@pytest.mark.parametrize("method", [NullSpaceProjection, RegressionFusion, HarmoniousFusion])
def test_every_time_of_a_task_has_a_name_of_its_own(method: Any, tmp_path: Path) -> None:
    """A table of costs that adds up by phase can tell them apart."""
    callback = method(**calibration_data())
    fit(foreign_module(OPTIMIZERS["adamw_decay"], True), [callback], tmp_path)
    times = [(entry["step"], entry["phase"]) for entry in callback._events if entry["event"] == "time"]
    assert len(times) == len(set(times)) >= 2
    assert (0, "calibrate") in times
