"""The refusals of the calibration set become no less likely than was allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.foreign_module import ForeignModule, LanguageModel, token_loader
from support.method_fits import OPTIMIZERS, calibration_data, fit
from torch import nn

from hpa_lightning.callbacks import NullSpaceProjection
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
