"""HarmoniousFusion against an independent float64 computation of Algorithm 1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_foreign import foreign_module, token_loader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from test_guarantees import OPTIMIZERS, dense, fit, settings

from hpa_lightning.callbacks import HarmoniousFusion
from hpa_lightning.modules.adapters import lora_layers
from hpa_lightning.result_file import read_results


def inputs_of(module: Any, batches: list[dict], names: list[str]) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    modules = dict(module.named_modules())
    module.eval()
    for batch in batches:
        keep = batch["attention_mask"].bool().numpy()
        hooks = [
            modules[name].register_forward_pre_hook(
                lambda inner, args, name=name, keep=keep: rows[name].append(args[0].double().numpy()[keep])
            )
            for name in names
        ]
        with torch.no_grad():
            module.model(batch["input_ids"])
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(value) for name, value in rows.items()}


def inverse_diagonal(x: np.ndarray, damping: float = 0.01) -> np.ndarray:
    hessian = 2.0 / len(x) * x.T @ x
    hessian[np.diag_indices_from(hessian)] += damping * np.mean(np.diag(hessian))
    return np.diag(np.linalg.inv(hessian))


def algorithm_1(
    before: np.ndarray, after: np.ndarray, safety: np.ndarray, task: np.ndarray, percent: float
) -> tuple[np.ndarray, np.ndarray]:
    """The three steps in loops and sorts of their own."""
    delta = after - before
    energy = (delta**2).mean(axis=0)
    epsilon, zeta = energy / safety, energy / task
    columns = len(epsilon)
    budget = math.floor(percent * columns / 100 + 0.5)
    focused = min(columns, math.floor(2 * percent * columns / 100 + 0.5))
    by = lambda score: sorted(range(columns), key=lambda j: (-score[j], j))  # noqa: E731
    safety_focused, task_focused = set(by(epsilon)[:focused]), set(by(zeta)[:focused])
    shared = safety_focused & task_focused
    alpha = 0.4 + 0.4 * (1 + math.tanh(np.mean(np.log(epsilon / zeta)))) / 2
    phi = epsilon - alpha * zeta
    chosen = [j for j in by(epsilon) if j in safety_focused - shared][:budget]
    chosen += [j for j in by(phi) if j in shared][: budget - len(chosen)]
    mask = np.zeros(columns, dtype=bool)
    mask[chosen] = True
    scale = (delta * before).sum() / (before**2).sum()
    return np.where(mask, before, before + delta - scale * before), mask


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_equals_algorithm_1(lora: bool, tmp_path: Path) -> None:
    optimizer = OPTIMIZERS["adamw_decay"]
    plain = foreign_module(optimizer, lora)
    names = list(dense(plain))
    before = {name: weight.clone().numpy() for name, weight in dense(plain).items()}
    safety_inputs = inputs_of(plain, list(token_loader(7, 8)), names)
    plain.train()
    fit(plain, [], tmp_path / "plain")
    after = {name: weight.numpy() for name, weight in dense(plain).items()}
    task_inputs = inputs_of(plain, list(token_loader(1, 20))[:3], names)  # 12 samples

    fused = foreign_module(optimizer, lora)
    fit(fused, [HarmoniousFusion(**settings())], tmp_path / "fused")
    result = {name: weight.numpy() for name, weight in dense(fused).items()}

    audit = {
        event["module"]: event
        for event in read_results(tmp_path / "fused" / "results.jsonl")
        if event["event"] == "retention"
    }
    assert list(audit) == names
    for name in names:
        layer = int(name.split(".layers.")[1].split(".")[0]) + 1
        percent = 40.0 - layer / 3 * 20.0
        expected, mask = algorithm_1(
            before[name],
            after[name],
            inverse_diagonal(safety_inputs[name]),
            inverse_diagonal(task_inputs[name]),
            percent,
        )
        np.testing.assert_allclose(result[name], expected, rtol=2e-5, atol=2e-6)
        assert np.array_equal(result[name][:, mask], before[name][:, mask])
        assert audit[name]["retained"] == mask.sum() and audit[name]["layer"] == layer
    if lora:
        assert all(not factors.lora_b.any() for _, factors in lora_layers(fused))


def test_fusion_is_in_the_last_checkpoint(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    module = foreign_module(OPTIMIZERS["adamw_decay"], lora=False)
    import lightning as L

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[HarmoniousFusion(**settings()), ModelCheckpoint(tmp_path, filename="end")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, token_loader(1, 20))
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    for name, weight in module.state_dict().items():
        assert torch.equal(saved[name], weight)


def test_max_steps_ends_the_task_too(tmp_path: Path) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora=True)
    fit(module, [HarmoniousFusion(**settings())], tmp_path, epochs=50, max_steps=7)
    assert all(not factors.lora_b.any() for _, factors in lora_layers(module))


def test_unsupported_adapters_are_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    module = foreign_module(OPTIMIZERS["sgd_momentum"], lora=False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), module.model)
    with pytest.raises(ValueError, match="DoRA"):
        fit(module, [HarmoniousFusion(**settings())], tmp_path)


def test_frozen_model_is_refused(tmp_path: Path) -> None:
    module = foreign_module(lambda p: torch.optim.SGD(p or [torch.nn.Parameter(torch.zeros(1))], lr=0.1), lora=False)
    module.model.layers.requires_grad_(False)
    with pytest.raises(ValueError, match="no tuned linear layer"):
        fit(module, [HarmoniousFusion(**settings())], tmp_path)


def test_other_strategies_are_refused(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    class Fake:
        strategy = FSDPStrategy()

    with pytest.raises(MisconfigurationException, match="FSDPStrategy"):
        HarmoniousFusion(**settings()).setup(Fake(), foreign_module(OPTIMIZERS["sgd_momentum"], True), "fit")  # type: ignore[arg-type]
