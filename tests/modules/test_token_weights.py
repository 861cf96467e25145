"""A step's gradient is that of one large batch: accumulation and ranks weigh answers by their tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import quiet_trainer
from support.programs import run_script
from support.tiny_mllms import tiny_llava
from support.token_weights_script import LENGTHS, Gradients, fit, records
from torch import Tensor
from torch.utils.data import DataLoader

from hpa_lightning.callbacks import FocusPartition, MaskedFreezing
from hpa_lightning.callbacks.baselines import OrthogonalLoRA
from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import LoraSettings, MLLMModule


def one_batch(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """The gradient of the Hugging Face model's own loss on all records at once."""
    model, processor = tiny_llava()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    model.train()
    model(**MLLMCollator(processor).train(records(lengths))).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], scale: float = 1.0) -> None:
    assert found.keys() == expected.keys()
    flat = [torch.cat([gradients[name].flatten() for name in expected]) for gradients in (found, expected)]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 1 - 1e-5
    torch.testing.assert_close(flat[0], scale * flat[1], rtol=1e-4, atol=1e-5 * float(flat[1].abs().max()))


def test_a_short_answer_does_not_weigh_more_in_accumulation(tmp_path: Path) -> None:
    seen = fit(tmp_path, (3, 33), accumulate_grad_batches=2)
    assert len(seen.steps) == 1
    assert_same(seen.steps[0], one_batch((3, 33)))
    # The losses are the batches' own, as Lightning divides them.
    assert seen.losses == pytest.approx([loss / 2 for loss in fit(tmp_path, (3, 33)).losses])


class BrokenOff(L.Callback):
    """The fit ends in the middle of an accumulation window, as out of memory or by Ctrl-C."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if index == 1:
            raise RuntimeError("out of memory")


def test_a_fit_after_one_that_was_broken_off_counts_its_own_tokens(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, (3, 33), (BrokenOff(),), module, accumulate_grad_batches=2)
    module.zero_grad()
    (step,) = fit(tmp_path, (3, 33), (), module, accumulate_grad_batches=2).steps
    assert_same(step, one_batch((3, 33)))


def test_the_last_incomplete_window_is_a_mean_too(tmp_path: Path) -> None:
    seen = fit(tmp_path, LENGTHS[:5], accumulate_grad_batches=3)
    assert len(seen.steps) == 2
    assert_same(seen.steps[0], one_batch(LENGTHS[:3]))
    # The records' questions are numbered, so the window's own two are compared.
    model, processor = tiny_llava()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    model(**MLLMCollator(processor).train(records(LENGTHS[:5])[3:])).loss.backward()
    assert_same(seen.steps[1], {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


class Clipped(L.Callback):
    """The gradients that the optimizer gets."""

    def __init__(self) -> None:
        self.norm = 0.0

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clipping_sees_the_mean(tmp_path: Path, share: float) -> None:
    norm = float(torch.stack([g.norm() for g in one_batch((3, 33)).values()]).norm())
    clipped = Clipped()
    fit(
        tmp_path, (3, 33, 1), (clipped,), accumulate_grad_batches=2, gradient_clip_val=share * norm
    )  # the third record's step starts with zeroing what the first step left
    assert clipped.norm == pytest.approx(min(share, 1.0) * norm, rel=1e-4)


def test_the_loss_scale_of_fp16_stays(tmp_path: Path) -> None:
    class ScaledInFp32(MixedPrecision):
        """The scaler of 16-mixed on the CPU, without the rounding of fp16."""

        def autocast_context_manager(self) -> torch.autocast:
            return torch.autocast("cpu", enabled=False)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    seen = fit(tmp_path, (3, 33), accumulate_grad_batches=2, plugins=[ScaledInFp32("16-mixed", "cpu", scaler)])
    assert_same(seen.steps[0], one_batch((3, 33)))


def test_one_batch_on_one_device_is_left_alone(tmp_path: Path) -> None:
    class Plain(MLLMModule):
        def count_answer_tokens(self, labels: Tensor) -> None:
            """Tell nothing: Lightning's own way."""

    def gradients(kind: type[MLLMModule]) -> list[dict[str, Tensor]]:
        module = kind.from_objects(*tiny_llava(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        return fit(tmp_path, LENGTHS, module=module, batch_size=2).steps

    for ours, plain in zip(gradients(MLLMModule), gradients(Plain), strict=True):
        assert all(torch.equal(ours[name], plain[name]) for name in plain)


class OwnStep(MLLMModule):
    """Overrides ``optimizer_step`` as Lightning's page on warm-ups shows it."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


def test_a_step_of_ones_own_that_leaves_the_division_out_is_told(tmp_path: Path) -> None:
    def tuned() -> OwnStep:
        return OwnStep.from_objects(*tiny_llava(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))

    with pytest.raises(MisconfigurationException, match=r"OwnStep\.optimizer_step .* Call super\(\)\.optimizer_step"):
        fit(tmp_path, LENGTHS, module=tuned(), accumulate_grad_batches=2)
    alone, plain = fit(tmp_path, (3, 33), module=tuned()).steps, fit(tmp_path, (3, 33)).steps
    for step, expected in zip(alone, plain, strict=True):  # without accumulation there is nothing to divide
        assert_same(step, expected)


def test_manual_optimization_is_left_alone() -> None:
    """It has no window: its batches would all be weighed by the first one's tokens."""
    module = MLLMModule.from_objects(*tiny_llava())
    module.automatic_optimization = False
    two = SimpleNamespace(accumulate_grad_batches=1, world_size=2, strategy=SimpleNamespace(reduce=lambda t, **_: t))
    module._trainer = two  # type: ignore[assignment]
    for tokens in (3, 33):
        module.count_answer_tokens(torch.ones(1, tokens + 1, dtype=torch.long))
        assert float(module._weighted(torch.tensor(2.0))) == 2.0


def lora_module() -> MLLMModule:
    return MLLMModule.from_objects(
        *tiny_llava(), lora=LoraSettings(rank=2), optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
    )


def test_a_penalty_keeps_its_weight(tmp_path: Path) -> None:
    """Its gradient is added after the tokens' division: the same with an accumulated window and one batch."""

    def step(weight: float = 0.005, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = lora_module()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        penalty = OrthogonalLoRA(weight=weight)
        penalty.on_task_start = lambda *_: penalty._find_adapters(module)  # type: ignore[method-assign]
        seen = Gradients()
        penalty._find_adapters(module)
        for linear in penalty._adapters:
            earlier = torch.randn(linear.factors.lora_a.shape, generator=torch.Generator().manual_seed(1))
            penalty.history[linear.name] = earlier
        # Callbacks run in order: what was seen last has the penalty in it.
        trainer = quiet_trainer(tmp_path, [penalty, seen], max_epochs=1, **options)
        collate = MLLMCollator(module.processor).train
        size = 2 // options.get("accumulate_grad_batches", 1)
        trainer.fit(module, DataLoader(records((3, 33)), batch_size=size, collate_fn=collate))
        return seen.steps[0]

    with_penalty, without = step(), step(weight=0.0)
    added = torch.stack([(with_penalty[name] - gradient).norm() for name, gradient in without.items()]).norm()
    share = float(added / torch.stack([gradient.norm() for gradient in without.values()]).norm())
    assert 0.01 < share < 10  # both parts of the gradient are seen
    assert_same(step(accumulate_grad_batches=2), with_penalty)


def test_the_probe_takes_the_steps_that_training_takes(tmp_path: Path) -> None:
    """Its masks come from the update of whole windows: two batches accumulated, or both in one."""

    def masks(accumulate: int) -> dict[str, Tensor]:
        L.seed_everything(3, verbose=False)
        module = MLLMModule.from_objects(
            *tiny_llava(), lora=LoraSettings(rank=2), optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
        )
        collate = MLLMCollator(module.processor).train
        safety = DataLoader(records((4, 4, 4, 4)), batch_size=2, collate_fn=collate)
        partition = FocusPartition(probe_steps=3, safety_data=safety)
        kept: dict[str, Tensor] = {}

        class Keep(L.Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                kept.update({name: mask.clone() for name, mask in partition.retained.items()})

        trainer = quiet_trainer(
            tmp_path, [partition, MaskedFreezing(), Keep()], max_epochs=1, accumulate_grad_batches=accumulate
        )
        loader = DataLoader(records(LENGTHS[:6]), batch_size=2 // accumulate, collate_fn=collate)
        trainer.fit(module, loader)
        return kept

    one, two = masks(1), masks(2)
    same = torch.cat([(one[name] == two[name]).float() for name in one])
    assert len(same) > 0 and float(same.mean()) == 1.0


@pytest.mark.processes
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_weigh_by_tokens_too(tmp_path: Path, strategy: str) -> None:
    run_script("token_weights_script.py", str(tmp_path), strategy, processes=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert len(first) == 2  # three batches of each process: a window of two and one of one
    for left, right in zip(first, second, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)
    model, processor = tiny_llava()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    for step, window in zip(first, (slice(0, 4), slice(4, 6)), strict=True):
        model.zero_grad()
        model(**MLLMCollator(processor).train(records(LENGTHS[:6])[window])).loss.backward()
        assert_same(step, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
