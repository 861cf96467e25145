"""The refusals of the calibration set become no less likely than was allowed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import ForeignModule, LanguageModel, token_loader
from support.method_fits import OPTIMIZERS, calibration_data, fit
from support.resumed_fits import ResumableLoader, Stop, trainer
from torch import nn

from hpa_lightning.callbacks import CalibrationSettings, NullSpaceProjection
from hpa_lightning.callbacks.batches import run_training_step
from hpa_lightning.callbacks.refusal_budget import RefusalBudget
from hpa_lightning.modules.lora import LoraSettings, add_lora


def loss_of(module: ForeignModule) -> float:
    """Of the safety batches, in eval mode."""
    module.eval()
    with torch.no_grad():
        losses = [float(safety_loss(module.model, batch)) for batch in token_loader(7, 8)]
    module.train()
    return sum(losses) / len(losses)


def safety_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits, tokens = model(batch["input_ids"]), batch["input_ids"]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def aligned(lora: bool) -> ForeignModule:
    """A model that has learnt its refusals, with its decoder blocks' linear layers alone under tuning."""
    torch.manual_seed(0)
    model: nn.Module = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        for batch in token_loader(7, 8):
            optimizer.zero_grad()
            safety_loss(model, batch).backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in f".{name}" and name.endswith("weight"))
    if lora:
        add_lora(model, LoraSettings(rank=3, alpha=6.0))
    return ForeignModule(model, OPTIMIZERS["adamw_decay"])


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("budget", [0.0, 0.05])
def test_the_loss_of_the_refusals_rises_by_no_more_than_the_budget(lora: bool, budget: float, tmp_path: Path) -> None:
    free, bound = aligned(lora), aligned(lora)
    start = loss_of(bound)
    fit(free, [], tmp_path / "free")
    # Of a budget of 0 a sketch leaves no direction that its rounding touches.
    form = "exact" if budget == 0 else "sketch"
    projection = NullSpaceProjection(share="refusals", budget=budget, form=form, **calibration_data())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*something other than the optimizer")  # rounding is not told
        fit(bound, [projection], tmp_path / "bound")
    assert loss_of(free) > start + 0.2, "plain tuning keeps to the budget by itself"
    assert loss_of(bound) <= start + budget + 1e-3  # padding counts in this loss, and is not calibrated with
    before, after = dict(aligned(lora).named_parameters()), dict(bound.named_parameters())
    assert any(not torch.equal(before[name], weight) for name, weight in after.items()), "nothing was learnt"


def test_the_refusals_tighten_the_budget_of_the_outputs_and_never_widen_it(tmp_path: Path) -> None:
    start = loss_of(aligned(lora=True))
    ends: dict[float | None, ForeignModule] = {}
    for refusal_budget in (None, 0.05, 10.0):
        ends[refusal_budget] = aligned(lora=True)
        projection = NullSpaceProjection(budget=0.3, refusal_budget=refusal_budget, **calibration_data())
        fit(ends[refusal_budget], [projection], tmp_path / str(refusal_budget))
    assert loss_of(ends[None]) > start + 0.1, "the outputs' budget keeps the refusals by itself"
    assert loss_of(ends[0.05]) <= start + 0.05 + 1e-3
    for name, weight in ends[None].named_parameters():
        assert torch.equal(weight, dict(ends[10.0].named_parameters())[name]), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "refusals", "refusal_budget": 0.1}, "expected budget= alone"),
        ({"energy": 0.9, "refusal_budget": 0.1}, "energy=0.9 and refusal_budget=0.1; expected shares of the trace or"),
        ({"refusal_budget": -0.1}, "refusal_budget is -0.1"),
        ({"refusal_budget": float("inf")}, "refusal_budget is inf"),
    ],
)
def test_a_budget_of_refusals_that_means_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NullSpaceProjection(**given)


def test_all_samples_are_measured_at_a_tasks_end_whatever_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[bool] = []
    loss = RefusalBudget.loss

    def noted(self: RefusalBudget, trainer: Any, pl_module: Any, whole: bool = False) -> float:
        measured.append(whole)
        return loss(self, trainer, pl_module, whole)

    monkeypatch.setattr(RefusalBudget, "loss", noted)
    projection = NullSpaceProjection(budget=0.3, refusal_budget=10.0, **calibration_data())
    assert projection.refusals is not None
    projection.refusals.every = 1  # the last step is measured within the task, too
    fit(aligned(lora=True), [projection], tmp_path)
    assert measured[:2] == [False, True] and measured[-1] and not any(measured[2:-1])


class Rises(L.Callback):
    """What the refusals' loss had risen by after every step."""

    def __init__(self, projection: NullSpaceProjection) -> None:
        assert projection.refusals is not None
        self.refusals = projection.refusals
        self.refusals.every = 1
        self.rises: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.rises.append(self.refusals.rose)


def shuffled(batch_size: int = 4, size: int = 64, **options: Any) -> NullSpaceProjection:
    settings = CalibrationSettings(size, 12, batch_size=4, safety_positions="all")
    data = token_loader(7, size, batch_size, shuffle=True)
    return NullSpaceProjection(safety_data=data, calibration=settings, **{"share": "refusals", **options})


def test_shuffled_safety_data_are_measured_on_the_same_samples(tmp_path: Path) -> None:
    module = aligned(lora=True)
    module.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    projection = shuffled()
    rises = Rises(projection)
    fit(module, [projection, rises], tmp_path)
    assert rises.rises == [0.0] * len(rises.rises) and rises.rises
    assert projection.refusals is not None and projection.refusals.rose == 0.0


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_32_samples_are_measured_within_a_task(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(pl_module: Any, batch: Any) -> Any:
        seen.append(len(batch["input_ids"]))
        return run_training_step(pl_module, batch)

    monkeypatch.setattr("hpa_lightning.callbacks.refusal_budget.run_training_step", counted)
    fit(aligned(lora=True), [shuffled(batch_size)], tmp_path, epochs=1)
    first = -(-32 // batch_size) * batch_size
    assert sum(seen[: -(-32 // batch_size)]) == min(first, 64)
    assert sum(seen) == min(first, 64) + 64 + 64  # few and all before the task, and all at its end


def test_a_bound_of_0_is_widened_again(tmp_path: Path) -> None:
    projection = NullSpaceProjection(budget=0.3, refusal_budget=10.0, **calibration_data())
    assert projection.output is not None and projection.refusals is not None
    output, bounds = projection.output, []
    projection.refusals.every = 1

    class Closes(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
            if trainer.global_step == 0:
                output.change = 0.0
            bounds.append(output.change)

    fit(aligned(lora=True), [projection, Closes()], tmp_path)
    assert bounds[0] == 0.0 and 0.0 < bounds[1] < bounds[2] < 0.3


def test_other_samples_after_a_resume_are_told_and_measured_as_before_the_task(tmp_path: Path) -> None:
    def run(folder: Path, stops: bool, **options: Any) -> tuple[NullSpaceProjection, Rises]:
        module = aligned(lora=True)
        torch.manual_seed(int(stops))  # of the shuffling
        module.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
        projection = shuffled()
        rises = Rises(projection)
        saves = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1)
        callbacks = [projection, rises, saves, *([Stop(3)] if stops else [])]
        trainer(folder, callbacks, max_epochs=1).fit(module, ResumableLoader(), **options)
        return projection, rises

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "first", stops=True)
    (checkpoint,) = (tmp_path / "first").glob("*.ckpt")
    with pytest.warns(UserWarning, match="the safety data give other samples than before the fit was interrupted"):
        projection, rises = run(tmp_path / "second", stops=False, ckpt_path=checkpoint, weights_only=False)
    assert rises.rises == [0.0] * 3
    assert projection.refusals is not None and projection.refusals.rose == 0.0
