"""HarmoniousFusion against an independent float64 computation of Algorithm 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.foreign_module import foreign_module, token_loader
from support.layer_inputs import inputs_of, inverse_diagonal
from support.method_fits import OPTIMIZERS, dense, fit, settings
from support.method_registry import RETENTION

from hpa_lightning.callbacks import FocusPartition, HarmoniousFusion, RetentionSettings
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.result_file import read_results


def algorithm_1(
    before: np.ndarray, after: np.ndarray, safety: np.ndarray, task: np.ndarray, percent: float
) -> tuple[np.ndarray, np.ndarray]:
    """The three steps in loops and sorts of their own."""
    energy = ((after - before) ** 2).mean(axis=0)
    return keep_and_project(before, after, energy / safety, energy / task, percent)


def algorithm_1_as_printed(
    before: np.ndarray, after: np.ndarray, safety: np.ndarray, task: np.ndarray, percent: float
) -> tuple[np.ndarray, np.ndarray]:
    """The scores with the subscript ``ii``, for weights stored as (in, out), whose columns are output units."""
    old, new = before.T, after.T
    inputs, outputs = old.shape
    scores = [
        np.array([sum((new[i, j] - old[i, j]) ** 2 / h[i] for i in range(inputs)) / inputs for j in range(outputs)])
        for h in (safety, task)
    ]
    fused, mask = keep_and_project(old, new, *scores, percent)
    return fused.T, mask


def keep_and_project(
    before: np.ndarray, after: np.ndarray, epsilon: np.ndarray, zeta: np.ndarray, percent: float
) -> tuple[np.ndarray, np.ndarray]:
    delta = after - before
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


@dataclass
class Ingredients:
    """What a fit without fusion gives: weights before and after, diagonals of both inverse Hessians, token counts."""

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    safety: dict[str, np.ndarray]
    task: dict[str, np.ndarray]
    tokens: tuple[int, int]


@pytest.fixture(scope="module", params=[True, False], ids=["lora", "full"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Ingredients]:
    module = foreign_module(OPTIMIZERS["adamw_decay"], request.param)
    names = list(dense(module))
    before = {name: weight.clone().numpy() for name, weight in dense(module).items()}
    safety = inputs_of(module, list(token_loader(7, 8)), names)
    module.train()
    fit(module, [], tmp_path_factory.mktemp("plain"))
    after = {name: weight.numpy() for name, weight in dense(module).items()}
    task = inputs_of(module, list(token_loader(1, 20))[:3], names)  # 12 samples
    tokens = len(safety[names[0]]), len(task[names[0]])
    diagonals = ({name: inverse_diagonal(x) for name, x in inputs.items()} for inputs in (safety, task))
    return request.param, Ingredients(before, after, *diagonals, tokens)


def percent_of(name: str) -> float:
    return 40.0 - (int(name.split(".layers.")[1].split(".")[0]) + 1) / 3 * 20.0


def test_equals_algorithm_1(plain: tuple[bool, Ingredients], tmp_path: Path) -> None:
    lora, made = plain
    fused = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    fit(fused, [HarmoniousFusion(**settings())], tmp_path)
    result = {name: weight.numpy() for name, weight in dense(fused).items()}
    audit = {
        event["module"]: event for event in read_results(tmp_path / "results.jsonl") if event["event"] == "retention"
    }
    assert list(audit) == list(made.before)
    for name, before in made.before.items():
        expected, mask = algorithm_1(before, made.after[name], made.safety[name], made.task[name], percent_of(name))
        np.testing.assert_allclose(result[name], expected, rtol=2e-5, atol=2e-6)
        assert np.array_equal(result[name][:, mask], before[:, mask])
        assert audit[name]["retained"] == mask.sum()
        assert audit[name]["layer"] == int(name.split(".layers.")[1].split(".")[0]) + 1
    if lora:
        assert all(not factors.lora_b.any() for _, factors in lora_layers(fused))


@pytest.mark.parametrize("saliency", ["divide", "multiply"])
def test_output_units_as_the_scores_are_printed(saliency: str, plain: tuple[bool, Ingredients], tmp_path: Path) -> None:
    lora, made = plain
    fused = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    options = {**settings(), "retention": replace(RETENTION, units="rows", saliency=saliency)}
    fit(fused, [HarmoniousFusion(**options)], tmp_path)
    events = {e["module"]: e for e in read_results(tmp_path / "results.jsonl") if e["event"] == "retention"}
    shared = []
    for name, weight in dense(fused).items():
        before, diagonals = made.before[name], (made.safety[name], made.task[name])
        if saliency == "multiply":
            diagonals = tuple(1 / diagonal for diagonal in diagonals)
        expected, mask = algorithm_1_as_printed(before, made.after[name], *diagonals, percent_of(name))
        np.testing.assert_allclose(weight.numpy(), expected, rtol=2e-5, atol=2e-6)
        assert np.array_equal(weight.numpy()[mask], before[mask]) and 0 < mask.sum() < len(mask)
        assert events[name]["retained"] == mask.sum() and events[name]["columns"] == len(before)
        assert events[name]["units"] == "rows"
        shared.append(events[name]["shared"] / events[name]["safety_focused"])
    assert min(shared) < 1.0  # the two scores have no numerator in common
    if lora:
        assert all(not factors.lora_b.any() for _, factors in lora_layers(fused))


@pytest.mark.parametrize(
    "variant",
    [
        {"rule": "safety"},
        {"rule": "balance"},
        {"rule": "balance", "reverse_alpha": True},
        {"rule": "balance", "normalized": False},
        {"rule": "ratio"},
        {"rule": "safety", "saliency": "multiply"},
    ],
    ids=lambda variant: "-".join(map(str, variant.values())),
)
def test_ablations_keep_the_columns_they_name(
    variant: dict[str, Any], plain: tuple[bool, Ingredients], tmp_path: Path
) -> None:
    lora, made = plain
    fused = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    normalized = variant.get("normalized", True)
    options = settings()
    options["calibration"] = replace(options["calibration"], normalized=normalized)
    chosen = {key: value for key, value in variant.items() if key != "normalized"}
    options["retention"] = replace(options["retention"], **chosen)
    fit(fused, [HarmoniousFusion(orthogonal=False, **options)], tmp_path)
    for name, weight in dense(fused).items():
        before, delta = made.before[name], made.after[name] - made.before[name]
        energy, divisors = (delta**2).mean(axis=0), [made.safety[name], made.task[name]]
        if not normalized:
            divisors = [divisor / count for divisor, count in zip(divisors, made.tokens, strict=True)]
        if variant.get("saliency") == "multiply":
            divisors = [1 / divisor for divisor in divisors]
        epsilon, zeta = (energy / divisor for divisor in divisors)
        tilt = math.tanh(np.mean(np.log(epsilon / zeta)))
        alpha = 0.4 + 0.4 * (1 + (-tilt if variant.get("reverse_alpha") else tilt)) / 2
        score = {"safety": epsilon, "balance": epsilon - alpha * zeta, "ratio": epsilon / zeta}[variant["rule"]]
        count = math.floor(percent_of(name) * len(score) / 100 + 0.5)
        kept = np.sort(np.argsort(-score, kind="stable")[:count])
        unmoved = np.flatnonzero((weight.numpy() == before).all(axis=0))
        np.testing.assert_array_equal(unmoved, kept)


def test_random_columns_are_a_fixed_draw_of_the_right_size(plain: tuple[bool, Ingredients], tmp_path: Path) -> None:
    lora, made = plain
    draws = []
    for number, seed in enumerate((0, 0, 1)):
        fused = foreign_module(OPTIMIZERS["adamw_decay"], lora)
        options = {**settings(), "retention": replace(RETENTION, rule="random", seed=seed)}
        fit(fused, [HarmoniousFusion(orthogonal=False, **options)], tmp_path / str(number))
        draws.append(
            {
                name: np.flatnonzero((weight.numpy() == made.before[name]).all(axis=0)).tolist()
                for name, weight in dense(fused).items()
            }
        )
    assert draws[0] == draws[1]
    assert sum(draws[0][name] != draws[2][name] for name in draws[0]) > 6, "another seed is another draw"
    assert len({tuple(columns) for columns in draws[0].values()}) > 6, "every layer draws its own"
    for name, columns in draws[0].items():
        assert len(columns) == math.floor(percent_of(name) * made.before[name].shape[1] / 100 + 0.5)


def test_unknown_rules_are_refused() -> None:
    for option in ({"rule": "safest"}, {"saliency": "add"}, {"units": "weights"}):
        with pytest.raises(ValueError, match="expected one of"):
            RetentionSettings(**option)
    with pytest.raises(ValueError, match="units is 'rows'; training freezes input columns alone"):
        FocusPartition(retention=RetentionSettings(units="rows"))


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
