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
from support.foreign_module import ForeignModule, foreign_module, quiet_trainer, token_loader
from support.penalty_script import train
from support.programs import run_script

from hpa_lightning.callbacks import TaskCallback
from hpa_lightning.callbacks.baselines import OrthogonalLoRA, RegLoRA
from hpa_lightning.callbacks.baselines.penalty import AdapterPenalty
from hpa_lightning.functional.adapter_penalty import unpack_mask
from hpa_lightning.modules.lora import lora_layers, merge_lora_, restart_lora_

SGD = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
FUSED = lambda parameters: torch.optim.SGD(parameters, lr=0.05, fused=True)  # noqa: E731


def penalties() -> dict[str, AdapterPenalty]:
    return {
        "olora": OrthogonalLoRA(weight=0.3),
        "olora_norms": OrthogonalLoRA(weight=0.3, norm_weight=0.2),
        "reglora": RegLoRA(percent=10.0, weight=20.0),
    }


def build(optimizer: Callable[..., torch.optim.Optimizer] = SGD) -> ForeignModule:
    module = foreign_module(optimizer, lora=True)
    for block in module.model.layers:
        block.dropout.p = 0.0
    return module


def fresh_adapters(module: ForeignModule, task: int) -> None:
    """What SequentialTuning does between two tasks."""
    merge_lora_(module)
    restart_lora_(module, torch.Generator().manual_seed(task))


def fit(module: ForeignModule, callbacks: list[L.Callback], folder: Path, task: int = 0, **options: Any) -> L.Trainer:
    trainer = quiet_trainer(folder, callbacks, max_epochs=1, **options)
    trainer.fit(module, token_loader(task, 24))
    return trainer


def in_the_loss(module: ForeignModule, penalty: AdapterPenalty) -> None:
    """The penalty by its formula, dense, through autograd, as a part of the module's own loss."""
    plain = module.training_step

    def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = plain(batch, batch_idx)
        with torch.autocast("cpu", enabled=False):
            terms = []
            for name, f in lora_layers(module):
                history = penalty.history.get(name)
                if isinstance(penalty, OrthogonalLoRA):
                    if history is not None:
                        terms.append(penalty.weight * (f.lora_a @ history.T).abs().sum())
                    # The authors' code takes torch.norm(p=2) of each matrix, which is not squared.
                    terms += [penalty.norm_weight * torch.norm(factor, p=2) for factor in (f.lora_a, f.lora_b)]
                else:
                    mask = unpack_mask(history, f.lora_a.shape[1]).bool()
                    terms.append(penalty.weight * (f.lora_b @ f.lora_a)[mask].abs().mean() / 12)
            return loss + sum(terms)

    module.training_step = training_step  # type: ignore[method-assign]


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


def test_norms_are_paid_for_in_the_first_task_too(tmp_path: Path) -> None:
    ends = {}
    for how in ("callback", "loss", "neither"):
        module, penalty = build(), penalties()["olora_norms"]
        if how == "loss":
            in_the_loss(module, penalty)
        fit(module, [penalty] if how == "callback" else [], tmp_path)
        ends[how] = torch.cat(
            [torch.cat([f.lora_a.flatten(), f.lora_b.flatten()]) for _, f in lora_layers(module)]
        ).detach()
    assert float((ends["callback"] - ends["neither"]).abs().max()) > 1e-3
    torch.testing.assert_close(ends["callback"], ends["loss"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="norm_weight is -1"):
        OrthogonalLoRA(norm_weight=-1)


def test_repeats_are_counted_where_asked(tmp_path: Path) -> None:
    union, repeated = (RegLoRA(percent=30.0, weight=0.0, count_repeats=repeats) for repeats in (False, True))
    for penalty in (union, repeated):
        module = build()
        for task in range(3):
            fit(module, [penalty], tmp_path, task=task)
            fresh_adapters(module, task + 1)
    for name, f in lora_layers(module):
        masks = [unpack_mask(mask, f.lora_a.shape[1]).bool() for mask in repeated.history[name]]
        assert len(masks) == 3
        assert torch.equal(torch.stack(masks).any(0), unpack_mask(union.history[name], f.lora_a.shape[1]).bool())
    saved = repeated.state_dict()
    restored = RegLoRA(percent=30.0, count_repeats=True)
    restored.load_state_dict(saved)
    assert all(torch.equal(restored.history[name], mask) for name, mask in repeated.history.items())


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
    run_script("penalty_script.py", str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone, plain = (train(tmp_path / str(weight), devices=1, weight=weight)[1] for weight in (1.0, 0.0))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    moved = max(float((alone[name] - plain[name]).abs().max()) for name in alone)
    wrong = max(float((alone[name] - first[name]).abs().max()) for name in alone)
    # Counted twice or halved it would be off by as much; signs near 0 turn with rounding.
    assert moved > 1e-3 and wrong < 0.2 * moved


def test_adapters_that_go_on_are_refused(tmp_path: Path) -> None:
    penalty, module = OrthogonalLoRA(), build()
    fit(module, [penalty], tmp_path)
    with pytest.raises(MisconfigurationException, match=r"12 adapters \(model.layers.0.q_proj, ...\) go on"):
        fit(module, [penalty], tmp_path)


def test_other_layers_in_a_later_task_are_refused(tmp_path: Path) -> None:
    penalty, module = RegLoRA(), build()
    fit(module, [penalty], tmp_path)
    fresh_adapters(module, 1)
    penalty.target_modules = ["q_proj"]
    with pytest.raises(ValueError, match="tuned other layers"):
        fit(module, [penalty], tmp_path)


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
