"""TaskVectorMerging: the kept weights from the tasks' updates, and what randomness may not do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS
from support.multimodal_fits import module as stream_module
from support.multimodal_fits import stream
from support.multimodal_fits import trainer as stream_trainer
from support.two_fits import Trained, two_fits

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.callbacks.baselines import TaskVectorMerging
from hpa_lightning.functional import merge_task_vectors
from hpa_lightning.modules.lora import lora_layers


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "magnitude_prune"])
def test_kept_weights_come_from_the_updates_of_all_tasks(lora: bool, method: Any, tmp_path: Path) -> None:
    module, trained = foreign_module(OPTIMIZERS["adamw_decay"], lora), Trained()
    merging = TaskVectorMerging(method, weight=0.7, density=0.3)
    kept = two_fits(module, [trained, merging], tmp_path)
    assert len(kept[0]) == 12
    for name, aligned in kept[0].items():
        updates = [trained.weights[task][name] - kept[task][name] for task in range(2)]
        for task in range(2):
            merged = merge_task_vectors(updates[: task + 1], method, 0.7, 0.3)
            torch.testing.assert_close(kept[task + 1][name], aligned + merged, rtol=1e-6, atol=1e-6)
    assert all(not factors.lora_b.any() for _, factors in lora_layers(module))
    sizes = {len(update) for updates in merging.vectors.values() for update in updates}
    assert sizes == ({2} if lora else {1}), "adapters are kept as factors"


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_task_arithmetic_of_weight_one_is_sequential_tuning(lora: bool, tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [TaskVectorMerging()]):
        tuned = stream_module(lora)
        tuned.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # no blow-up of rounding
        before = {name: weight.clone() for name, weight in tuned.state_dict().items()}
        stream_trainer(tmp_path, [SequentialTuning(), *callbacks]).fit(tuned, stream())
        states.append(tuned.state_dict())
    compared = [name for name in before if "language_model.layers" in name and "lora" not in name]
    moved = max(float((states[0][name] - before[name]).abs().max()) for name in compared)
    assert moved > 1e-3
    for name in compared:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-4, atol=2e-6)


def test_dare_is_seeded_by_layer_and_task_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    def run(seed: int, outside: int) -> tuple[list[dict[str, torch.Tensor]], Trained]:
        module, trained = foreign_module(OPTIMIZERS["adamw_decay"], True), Trained()
        for block in module.model.layers:
            block.dropout.p = 0.0
        torch.manual_seed(outside)
        return two_fits(module, [trained, TaskVectorMerging("dare_linear", density=0.4, seed=seed)], tmp_path), trained

    (kept, trained), (again, _), (other, _) = run(0, 1), run(0, 2), run(1, 1)
    shares = []
    masks = {}
    for name in kept[0]:
        assert torch.equal(kept[2][name], again[2][name])
        assert not torch.equal(kept[1][name], other[1][name])
        first = kept[1][name] - kept[0][name]
        update = trained.weights[0][name] - kept[0][name]
        dropped = first.abs() < 1e-6
        big = update.abs() > 1e-4
        torch.testing.assert_close(first[big & ~dropped], update[big & ~dropped] / 0.4, rtol=1e-3, atol=1e-6)
        shares.append(float((~dropped)[big].double().mean()))
        masks[name] = dropped
        # The first task's dropped entries stay dropped: the second adds its own share and nothing else.
        second = kept[2][name] - kept[1][name]
        update = trained.weights[1][name] - kept[1][name]
        added, big = second.abs() > 1e-6, update.abs() > 1e-4
        torch.testing.assert_close(second[big & added], update[big & added] / 0.4, rtol=1e-3, atol=1e-6)
    assert 0.3 < np.mean(shares) < 0.5
    same_shape = [mask for mask in masks.values() if mask.shape == (12, 12)]
    assert len(same_shape) > 2 and not torch.equal(same_shape[0], same_shape[1])


def test_the_global_random_state_is_put_back(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [TaskVectorMerging("dare_ties", density=0.5)]):
        torch.manual_seed(4)
        random.seed(4)
        np.random.seed(4)
        two_fits(foreign_module(OPTIMIZERS["sgd_momentum"], True, seed=4), callbacks, tmp_path)
        states.append((torch.rand(3).tolist(), random.random(), float(np.random.rand())))
    assert states[0] == states[1]


def test_a_diverged_update_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Diverge(Trained):
        end_order = 5

        def on_task_end(self, trainer: Any, pl_module: Any, task: Any) -> None:
            with torch.no_grad():
                pl_module.model.layers[2].down_proj.weight[0, 0] = float("inf")
            super().on_task_end(trainer, pl_module, task)

    module, watch = foreign_module(OPTIMIZERS["adamw_decay"], False), Diverge()
    with pytest.raises(ValueError, match="diverged"):
        two_fits(module, [watch, TaskVectorMerging("ties")], tmp_path)
    for name, inner in module.named_modules():
        if name in watch.weights[0]:
            assert torch.equal(inner.weight.double(), watch.weights[0][name])
