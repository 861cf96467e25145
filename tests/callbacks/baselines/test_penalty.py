"""Penalties on adapters over several tasks: the same training as with the penalty in the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module
from support.penalised_fits import SGD, build, fit, fresh_adapters, in_the_loss, penalties
from support.penalty_script import train
from support.programs import run_script

from hpa_lightning.callbacks import TaskCallback
from hpa_lightning.callbacks.baselines import OrthogonalLoRA, RegLoRA
from hpa_lightning.functional.adapter_penalty import unpack_mask
from hpa_lightning.modules.lora import lora_layers

FUSED = lambda parameters: torch.optim.SGD(parameters, lr=0.05, fused=True)  # noqa: E731

OPTIONS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[], dict[str, Any]]]] = {
    "plain": (SGD, dict),
    "accumulate_and_clip": (SGD, lambda: {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}),
    "bf16_mixed": (SGD, lambda: {"precision": "bf16-mixed"}),
    "fp16_mixed": (SGD, lambda: {"plugins": MixedPrecision("16-mixed", "cpu"), "gradient_clip_val": 0.3}),
    "fp16_fused": (FUSED, lambda: {"plugins": MixedPrecision("16-mixed", "cpu")}),
}


@pytest.mark.parametrize("name", penalties())
@pytest.mark.parametrize("setting", OPTIONS)
def test_the_training_is_that_of_loss_plus_penalty(name: str, setting: str, tmp_path: Path) -> None:
    optimizer, options = OPTIONS[setting]
    penalty = penalties()[name]
    first = build()
    fit(first, [penalty], tmp_path)
    assert len(penalty.history) == 12
    fresh_adapters(first, task=1)
    start = {key: value.clone() for key, value in first.state_dict().items()}

    ends: dict[str, list[torch.Tensor]] = {}
    for how in ("callback", "loss", "neither"):
        module = build(optimizer)
        module.load_state_dict(start)
        if how == "loss":
            in_the_loss(module, penalty)
        mine = penalties()[name]
        mine.history = dict(penalty.history)
        fit(module, [mine] if how == "callback" else [], tmp_path, task=1, **options())
        ends[how] = [tensor for _, f in lora_layers(module) for tensor in (f.lora_a.detach(), f.lora_b.detach())]
    moved = max(float((one - two).abs().max()) for one, two in zip(ends["callback"], ends["neither"], strict=True))
    wrong = max(float((one - two).abs().max()) for one, two in zip(ends["callback"], ends["loss"], strict=True))
    # fp16 rounds the part of the gradient that comes through the model, the same in both but for the loss scale.
    assert moved > 1e-3 and wrong <= (0.02 if setting.startswith("fp16") else 1e-4) * moved


def test_history_is_that_of_the_trained_adapters(tmp_path: Path) -> None:
    """Captured before anything is merged, over two tasks; the first task is plain tuning."""
    trained: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []

    class Note(TaskCallback):
        end_order = 4

        def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            trained.append(
                {
                    name: (f.lora_a.detach().numpy().copy(), f.lora_b.detach().double().numpy().copy())
                    for name, f in lora_layers(pl_module)
                }
            )

    class Merge(TaskCallback):
        end_order = 10

        def on_task_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            fresh_adapters(pl_module, len(trained))

    olora, reglora = OrthogonalLoRA(), RegLoRA(percent=10.0)
    module, plain = build(), build()
    fit(module, [Merge(), olora, reglora, Note()], tmp_path)
    fit(plain, [Note()], tmp_path)
    for name, (a, b) in trained[0].items():
        assert np.array_equal(a, trained[1][name][0]) and np.array_equal(b, trained[1][name][1])
    trained.pop()
    fit(module, [Merge(), olora, reglora, Note()], tmp_path, task=1)
    for name, f in lora_layers(module):
        assert np.array_equal(olora.history[name].numpy(), np.concatenate([trained[0][name][0], trained[1][name][0]]))
        union = set()
        for a, b in (task[name] for task in trained):
            size = np.abs(b @ a.astype(np.float64)).ravel()
            union |= set(np.argsort(-size)[: round(0.1 * size.size)].tolist())
        mask = unpack_mask(reglora.history[name], f.lora_a.shape[1]).numpy().ravel()
        assert set(np.flatnonzero(mask).tolist()) == union


def test_penalty_is_logged_and_falls(tmp_path: Path) -> None:
    overlaps = {}
    for weight in (0.0, 1.0):
        penalty = OrthogonalLoRA(weight=weight)
        module = build(lambda parameters: torch.optim.Adam(parameters, lr=0.01))
        fit(module, [penalty], tmp_path)
        earlier = dict(penalty.history)
        fresh_adapters(module, task=1)
        logger = CSVLogger(tmp_path, name=str(weight), version="")
        trainer = fit(module, [penalty], tmp_path, task=1, logger=logger, log_every_n_steps=1)
        after = {name: f.lora_a.detach() for name, f in lora_layers(module)}
        overlaps[weight] = sum(float((after[name] @ earlier[name].T).abs().sum()) for name in after)
        assert "train/penalty" in (tmp_path / str(weight) / "metrics.csv").read_text()
    assert overlaps[1.0] < 0.5 * overlaps[0.0]
    assert float(trainer.logged_metrics["train/penalty"]) == pytest.approx(overlaps[1.0], rel=0.3)


@pytest.mark.processes
def test_two_processes_add_the_penalty_once(tmp_path: Path) -> None:
    run_script("penalty_script.py", str(tmp_path), processes=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone, plain = (train(tmp_path / str(weight), devices=1, weight=weight)[1] for weight in (1.0, 0.0))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    moved = max(float((alone[name] - plain[name]).abs().max()) for name in alone)
    wrong = max(float((alone[name] - first[name]).abs().max()) for name in alone)
    # Counted twice or halved it would be off by as much; signs near 0 turn with rounding.
    assert moved > 1e-3 and wrong < 0.2 * moved


def test_full_tuning_and_bad_settings_are_refused(tmp_path: Path) -> None:
    for penalty in penalties().values():
        with pytest.raises(MisconfigurationException, match="12 of the 12 tuned layers are tuned in full"):
            fit(foreign_module(SGD, lora=False), [penalty], tmp_path)
    manual = build()
    manual.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="automatic optimization"):
        fit(manual, [OrthogonalLoRA()], tmp_path)
    for make in (lambda: OrthogonalLoRA(weight=-1.0), lambda: RegLoRA(weight=float("nan")), lambda: RegLoRA(percent=0)):
        with pytest.raises(ValueError, match="expected"):
            make()
