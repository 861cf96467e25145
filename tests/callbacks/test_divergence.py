"""A training that diverges stops at the step where it does, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import ForeignModule, LanguageModel, token_loader
from support.method_fits import calibration_data
from support.method_registry import METHODS, TUNING_IDS, TUNINGS
from support.multimodal_fits import method, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import build, trainer

from hpa_lightning.callbacks import MaskedFreezing, SequentialTuning
from hpa_lightning.callbacks.divergence import TrainingDivergedError, largest


class BadGradient(L.Callback):
    """One element of one gradient is not finite in one step."""

    def __init__(self, step: int, value: float, part: str = "v_proj") -> None:
        self.step, self.value, self.part = step, value, part

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self.step:
            for name, parameter in pl_module.named_parameters():
                if self.part in name and parameter.grad is not None:
                    parameter.grad.view(-1)[0] = self.value
                    return


@pytest.mark.parametrize(("name", "lora"), TUNINGS, ids=TUNING_IDS)
def test_a_gradient_that_is_not_finite_stops_before_its_step(name: str, lora: bool, tmp_path: Path) -> None:
    tuned = build(lora)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    every = [*METHODS[name](calibration_data()), BadGradient(7, float("nan")), save]
    with pytest.raises(TrainingDivergedError, match=r"step 7 \(epoch 1, batch 2\): the gradients of \S*v_proj\S* are"):
        trainer(tmp_path, every).fit(tuned, token_loader(1, 20))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in tuned.parameters())
    last = torch.load(tmp_path / "step=7.ckpt")["state_dict"]
    assert all(torch.equal(weight, last[key]) for key, weight in tuned.state_dict().items())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_in_a_stream(lora: bool, tmp_path: Path) -> None:
    every = [SequentialTuning(), *method("post_training"), BadGradient(4, float("inf"), "layers.1.self_attn.q_proj")]
    with pytest.raises(TrainingDivergedError, match=r"step 4 \(epoch 1, batch 1\): the gradients of \S*q_proj\S* are"):
        stream_trainer(tmp_path, every).fit(module(lora), stream())


class BadLoss(ForeignModule):
    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self._trainer and self.global_step == 2 and torch.is_grad_enabled() else loss


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    tuned = BadLoss(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.1))
    every = METHODS["post_training"](calibration_data())
    with pytest.raises(
        TrainingDivergedError, match=r"step 2 .*: the loss is not finite, and all weights are \(the largest is"
    ):
        trainer(tmp_path, every, accumulate_grad_batches=2, enable_checkpointing=False).fit(tuned, token_loader(1, 20))


class Overflows(torch.optim.SGD):
    """As a rate that is far too high does."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            self.param_groups[0]["params"][1].mul_(float("inf"))
        return loss


def test_a_rate_that_blows_the_weights_up(tmp_path: Path) -> None:
    tuned = ForeignModule(LanguageModel(), lambda p: Overflows(p, lr=0.1))
    every = METHODS["linear_merging"](calibration_data())
    with pytest.raises(
        TrainingDivergedError, match=r"step 1 .*: the weights of model.layers.0.q_proj.weight are not finite"
    ):
        trainer(tmp_path, every, enable_checkpointing=False).fit(tuned, token_loader(1, 20))


def test_weights_that_the_last_step_blew_up_are_not_fused(tmp_path: Path) -> None:
    tuned = ForeignModule(LanguageModel(), lambda p: Overflows(p, lr=0.1))
    every = METHODS["linear_merging"](calibration_data())
    with pytest.raises(TrainingDivergedError, match=r"the weights of \S+ are not finite"):
        trainer(tmp_path, every, max_epochs=1, enable_checkpointing=False).fit(tuned, token_loader(1, 4))


def test_the_scaler_of_half_precision_may_skip_steps(tmp_path: Path) -> None:
    """On the CPU the scaler is torch's own; its plugin is asked for, as Lightning's is on a GPU."""
    every = [*METHODS["post_training"](calibration_data()), BadGradient(3, float("inf"))]
    runner = trainer(tmp_path, every, max_epochs=1, enable_checkpointing=False)
    runner.precision_plugin.scaler = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
    tuned = build(True)

    class Skips(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            for parameter in pl_module.parameters():
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    for other in pl_module.parameters():
                        other.grad = None
                    return

    runner.callbacks.append(Skips())
    runner.fit(tuned, token_loader(1, 20))
    assert runner.global_step == 5


def test_the_largest_value_of_all_kinds_of_tensors() -> None:
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, -7.0], (4,))
    tensors = [torch.zeros(0), torch.ones(2, dtype=torch.bfloat16), sparse, torch.tensor([3])]
    size = largest(tensors)
    assert size is not None and float(size) == 7.0
    assert largest([torch.tensor([1])]) is None
    assert MaskedFreezing.on_before_optimizer_step is not L.Callback.on_before_optimizer_step


def test_weights_that_are_not_trained_and_not_finite_are_told_once(tmp_path: Path) -> None:
    """Of a token that nothing uses: neither the loss nor a calibration sees it."""
    tuned = build(lora=True)
    tuned.unused = torch.nn.Parameter(torch.tensor([1.0, float("nan")]), requires_grad=False)
    with pytest.warns(UserWarning, match="the weights of unused, which are not trained, hold values that") as told:
        trainer(tmp_path, METHODS["in_training"](calibration_data()), max_epochs=1).fit(tuned, token_loader(1, 20))
    assert sum("which are not trained" in str(warning.message) for warning in told) == 1
