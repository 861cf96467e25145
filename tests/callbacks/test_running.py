"""Batches of an evaluation are shared by the processes, and a module that is run outside its loops is as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from support.foreign_module import ForeignModule, LanguageModel
from support.method_fits import OPTIMIZERS, calibration_data, fit
from support.method_registry import METHODS
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from hpa_lightning.callbacks.running import kept_optimizer, leaving_no_trace, local_share


@pytest.mark.parametrize("kind", ["loader", "unbatched", "list"])
def test_every_batch_belongs_to_one_process(kind: str) -> None:
    data = list(range(11))
    loader = {
        "loader": DataLoader(data, batch_size=2),
        "unbatched": DataLoader(data, batch_size=None),
        "list": data,
    }[kind]
    shares = [
        [str(batch) for batch in local_share(loader, SimpleNamespace(world_size=3, global_rank=rank))]
        for rank in range(3)
    ]
    assert sorted(batch for share in shares for batch in share) == sorted(str(batch) for batch in loader)
    assert shares[0][0] == str(next(iter(loader))) and min(map(len, shares)) >= 2


class Counts(ForeignModule):
    """Counts its steps and tokens in every way that a module of somebody's own may."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(LanguageModel(), OPTIMIZERS["adamw_decay"])
        self.tokens = SumMetric()
        self.several = MetricCollection({"sum": SumMetric(), "again": SumMetric(), "mean": MeanMetric()})
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("written", torch.zeros(()))
        self.steps, self.average = 0, torch.zeros(())

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.tokens.update(batch["input_ids"].numel())
        self.several.update(torch.ones(3))
        self.replaced = self.replaced + 1
        self.written += 1
        self.steps += 1
        self.average = self.average + 1
        self.log("tokens", self.tokens, on_step=False, on_epoch=True)
        return loss


@pytest.mark.parametrize("method", ["none", "in_training", "post_training", "null_space_sketch", "null_space_refusals"])
def test_what_a_module_counts_is_what_was_trained(method: str, tmp_path: Path) -> None:
    module, seen = Counts(), []

    class Sees(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append({name: float(value) for name, value in module.several.compute().items()})

    callbacks = [] if method == "none" else METHODS[method](calibration_data())
    fit(module, [Sees(), *callbacks], tmp_path, epochs=1)  # 20 samples of 7 tokens in batches of 4
    assert float(module.trainer.callback_metrics["tokens"]) == 140.0
    assert seen == [{"sum": 15.0, "again": 15.0, "mean": 1.0}]
    assert [float(value) for value in (module.replaced, module.written, module.steps, module.average)] == [5.0] * 4


def test_a_step_that_fails_leaves_no_trace_either() -> None:
    module = Counts()
    replaced: Any = module.replaced
    with pytest.raises(RuntimeError, match="broken"), leaving_no_trace(module):
        module.training_step({"input_ids": torch.ones(2, 4, dtype=torch.long)}, 0)
        raise RuntimeError("broken")
    assert module.replaced is replaced and float(module.written) == module.steps == float(module.tokens.compute()) == 0
    assert "log" not in vars(module)


class WideMomentum(torch.optim.Optimizer):
    """Keeps its momentum in float32, whatever the weights are in, and settings that it makes on the way."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for weight in group["params"]:
                sums = self.state[weight].setdefault("sums", torch.zeros_like(weight, dtype=torch.float32))
                sums.mul_(0.9).add_(weight.grad.float() / 3)
                weight.sub_(group["lr"] * sums.to(weight.dtype))


def test_an_optimizer_is_put_back_to_the_last_bit() -> None:
    """torch's own ``load_state_dict`` would leave the momentum in bfloat16."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = WideMomentum([weight])
    weight.grad = torch.tensor([0.1, 0.2, 0.3], dtype=torch.bfloat16)
    fresh = kept_optimizer(optimizer)
    optimizer.step()
    before = optimizer.state[weight]["sums"].clone()
    put_back = kept_optimizer(optimizer)
    optimizer.param_groups[0] |= {"lr": 5.0, "made": 1}
    optimizer.step()
    put_back()
    assert optimizer.state[weight]["sums"].dtype == torch.float32
    assert torch.equal(optimizer.state[weight]["sums"], before)
    assert {name: value for name, value in optimizer.param_groups[0].items() if name != "params"} == {
        "lr": 0.1,
        "steps": 1,
    }
    fresh()
    assert not optimizer.state and "steps" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["params"][0] is weight
