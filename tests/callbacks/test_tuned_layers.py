"""Layers that are not tuned, and adapters that stand elsewhere, are told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, inject_adapter_in_model
from support.calibrated_fits import fit_with
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from support.llama_module import LlamaModule
from support.method_fits import OPTIMIZERS, calibration_data, fit, settings
from support.method_registry import METHODS
from support.multimodal_fits import module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import build
from support.tiny_mllms import training_records

from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, NullSpaceProjection, SequentialTuning

SMALL = {"safety_samples": 4, "task_samples": 4, "batch_size": 4}


def test_a_frozen_model_is_told(tmp_path: Path) -> None:
    tuned = build(False)
    tuned.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"every parameter of ForeignModule is frozen \(requires_grad"):
        fit_with(tmp_path, HarmoniousFusion(**calibration_data()), tuned=tuned)


def test_adapters_outside_the_decoder_are_named_once(tmp_path: Path) -> None:
    """LoRA on the vision tower and the projector of a LLaVA model, as peft's `all-linear` puts it there."""
    tuned = module(lora=False)
    names = [
        name
        for name, inner in tuned.model.named_modules()
        if isinstance(inner, torch.nn.Linear) and "lm_head" not in name
    ]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names), tuned.model)
    data = {"safety_data": training_records(4), "calibration": CalibrationSettings(**SMALL)}
    with pytest.warns(UserWarning, match=r"HarmoniousFusion treats 14 linear .* other layers") as told:
        stream_trainer(tmp_path, [SequentialTuning(), HarmoniousFusion(**data)]).fit(tuned, stream())
    (message,) = {str(one.message) for one in told if "other layers are trained" in str(one.message)}
    assert "vision_tower" in message and "(LoRA)" in message and "language_model" not in message


def test_unsupported_adapters_are_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    module = foreign_module(OPTIMIZERS["sgd_momentum"], lora=False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), module.model)
    with pytest.raises(ValueError, match=r"DoraLinearVariant|DoRA"):
        fit(module, [HarmoniousFusion(**settings())], tmp_path)


class UnfreezesLater(BaseFinetuning):
    """The first block is trained from an epoch on, as Lightning's guide to fine-tuning has it."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        self.freeze(pl_module.model.layers[0])

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == self.epoch:
            self.unfreeze_and_add_param_group(pl_module.model.layers[0], optimizer, lr=0.1)


class OneBlockEach(L.Callback):
    """LISA: each epoch trains another block."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number, block in enumerate(pl_module.model.layers):
            block.requires_grad_(number == 2 - trainer.current_epoch)


@pytest.mark.parametrize("other", [UnfreezesLater(1), OneBlockEach()], ids=["finetuning", "lisa"])
@pytest.mark.parametrize("method", ["post_training", "in_training", "null_space"])
def test_layers_that_are_unfrozen_within_a_task_are_refused(method: str, other: L.Callback, tmp_path: Path) -> None:
    tuned = foreign_module(OPTIMIZERS["sgd_momentum"], False)
    callbacks = [other, *METHODS[method](calibration_data())]
    trainer = quiet_trainer(tmp_path, callbacks, max_epochs=2)
    before = {name: one.detach().clone() for name, one in tuned.named_parameters()}
    with pytest.raises(MisconfigurationException, match=r"frozen when the task began, and trained now, without it: "):
        trainer.fit(tuned, token_loader(1, 8))
    late = "layers.0" if isinstance(other, UnfreezesLater) else "layers.1"
    assert all(torch.equal(one, before[name]) for name, one in tuned.named_parameters() if late in name)


def test_a_resume_with_layers_frozen_that_were_tuned_is_told(tmp_path: Path) -> None:
    """BaseFinetuning freezes anew on a resume (Lightning, issue 21901)."""

    def callbacks() -> list[L.Callback]:
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        return [UnfreezesLater(0), *METHODS["post_training"](calibration_data()), saving]

    options: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True}
    tuned = foreign_module(OPTIMIZERS["sgd_momentum"], False)
    quiet_trainer(tmp_path / "first", callbacks(), **options).fit(tuned, token_loader(1, 8))
    again = foreign_module(OPTIMIZERS["sgd_momentum"], False)
    with pytest.raises(ValueError, match=r"weights before the task of model.layers.0.*which are not tuned now"):
        quiet_trainer(tmp_path / "second", callbacks(), **options).fit(
            again, token_loader(1, 8), ckpt_path=tmp_path / "epoch=0.ckpt"
        )


def test_frozen_model_is_refused(tmp_path: Path) -> None:
    module = foreign_module(lambda p: torch.optim.SGD(p or [torch.nn.Parameter(torch.zeros(1))], lr=0.1), lora=False)
    module.model.layers.requires_grad_(False)
    with pytest.raises(ValueError, match="no tuned linear layer"):
        fit(module, [HarmoniousFusion(**settings())], tmp_path)


def test_an_adapter_that_holds_an_update_already_is_told(tmp_path: Path) -> None:
    """In-training methods take from the whole adapter; what it has learnt before cannot be told from the task's."""
    tuned = foreign_module(OPTIMIZERS["adamw_decay"], True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hold an update already")
        fit(tuned, [NullSpaceProjection(**calibration_data())], tmp_path)  # fresh
        with pytest.raises(
            UserWarning, match=r"NullSpaceProjection: the adapters of \d+ layers hold an update already"
        ):
            fit(tuned, [NullSpaceProjection(**calibration_data())], tmp_path)
        whole = foreign_module(OPTIMIZERS["adamw_decay"], False)
        for _ in range(2):
            fit(whole, [NullSpaceProjection(**calibration_data())], tmp_path)
        fused = foreign_module(OPTIMIZERS["adamw_decay"], True)
        for _ in range(2):
            fit(fused, [HarmoniousFusion(**settings())], tmp_path)  # leaves an empty adapter
        stream_trainer(
            tmp_path,
            [SequentialTuning(), HarmoniousFusion(**{**calibration_data(), "safety_data": training_records(8)})],
        ).fit(module(), stream())


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_no_gradient_reaches_are_named(
    reentrant: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Reentrant checkpoints behind frozen embeddings; the trained head hides it, and no hook of transformers' helps."""
    tuned = LlamaModule(lora=True)
    tuned.model.lm_head.weight.requires_grad_(True)
    tuned.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    tuned.model.disable_input_require_grads()
    fit(tuned, [SequentialTuning(), HarmoniousFusion(**settings())], tmp_path)
    told = [str(one.message) for one in recwarn if "are as they were before it" in str(one.message)]
    assert len(told) == reentrant
    if reentrant:
        assert told[0].startswith("Task 0 (fit): 14 of 14 tuned layers")
        assert "model.model.layers.0.self_attn.q_proj, " in told[0]


def test_steps_too_small_for_the_weights_are_told(tmp_path: Path) -> None:
    tuned = LlamaModule(lora=False).to(torch.bfloat16)
    tuned.configure_optimizers = lambda: torch.optim.AdamW(tuned.parameters(), lr=1e-7, weight_decay=0.0)  # type: ignore
    with pytest.warns(
        UserWarning, match=r"tuned layers are as they were before it: .*too small for the weights' dtype"
    ):
        fit(tuned, [HarmoniousFusion(**settings())], tmp_path)
