"""What something other than the optimizer writes does not undo in silence what a task's end did."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import token_loader
from support.method_fits import calibration_data
from support.method_registry import METHODS
from support.multimodal_fits import method, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import build, trainer
from timm.utils import ModelEmaV2
from torch.optim.swa_utils import AveragedModel

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.modules.lora import merge_lora_, restart_lora_


class TimmEma(L.Callback):
    """An average of weights as users write it, with timm's class, put into the model when the fit ends."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ema = ModelEmaV2(pl_module.model, decay=0.9)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.ema.update(pl_module.model)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.model.load_state_dict(self.ema.module.state_dict())


class TorchAverage(L.Callback):
    """torch's own average, put into the model after every epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.average = AveragedModel(pl_module.model)
        self.average.update_parameters(pl_module.model)
        pl_module.model.load_state_dict(self.average.module.state_dict())


class SwapsBack(L.Callback):
    """Validates an average and puts the weights back: nothing is lost."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own = copy.deepcopy(pl_module.model.state_dict())
        pl_module.model.load_state_dict({name: weight * 0.5 for name, weight in own.items()})
        pl_module.model.load_state_dict(own)


@pytest.mark.parametrize("name", ["post_training", "in_training"])
@pytest.mark.parametrize(
    "writer",
    [
        StochasticWeightAveraging(1e-3),
        *(
            getattr(lightning_callbacks, kind)()
            for kind in ("WeightAveraging", "EMAWeightAveraging")
            if hasattr(lightning_callbacks, kind)
        ),
        lightning_callbacks.ModelPruning("l1_unstructured", amount=0.1),
    ],
    ids=lambda writer: type(writer).__name__,
)
def test_lightning_s_writers_are_refused_by_name(writer: L.Callback, name: str, tmp_path: Path) -> None:
    every = [*METHODS[name](calibration_data()), writer]
    with pytest.raises(MisconfigurationException, match=f"does not support {type(writer).__name__}: it "):
        trainer(tmp_path, every, enable_checkpointing=False).fit(build(False), token_loader(1, 20))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("writer", [TimmEma, TorchAverage])
@pytest.mark.parametrize("first", [True, False])
def test_others_are_noticed(writer: type[L.Callback], lora: bool, first: bool, tmp_path: Path) -> None:
    every = [*METHODS["post_training"](calibration_data())]
    every.insert(0 if first else len(every), writer())
    runner = trainer(tmp_path, every, max_epochs=2, enable_checkpointing=False)
    if writer is TorchAverage and first:  # before the task's end: it is fused like any weight
        runner.fit(build(lora), token_loader(1, 20))
        return
    with pytest.raises(
        MisconfigurationException, match=rf"differ from those that the task's end left(.|\n)*{writer.__name__}"
    ):
        runner.fit(build(lora), token_loader(1, 20))


def test_weights_that_move_between_two_tasks_are_noticed(tmp_path: Path) -> None:
    class Moves(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 0:
                with torch.no_grad():
                    next(p for name, p in pl_module.named_parameters() if "q_proj.base" in name)[0, 0] += 1e-3

    every = [SequentialTuning(), *method("post_training"), Moves()]
    with pytest.raises(MisconfigurationException, match=r"1 of \d+ parameters \(\S+q_proj\S+\) differ from those"):
        stream_trainer(tmp_path, every).fit(module(), stream())


def test_weights_that_are_put_back_are_not(tmp_path: Path) -> None:
    every = [*METHODS["post_training"](calibration_data()), SwapsBack()]
    trainer(tmp_path, every, max_epochs=1, enable_checkpointing=False).fit(build(True), token_loader(1, 20))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("merges", [True, False], ids=["merged by the callback", "merged by the user"])
def test_callbacks_that_go_on_with_another_model_are_told(lora: bool, merges: bool, tmp_path: Path) -> None:
    options = {"max_epochs": 1, "enable_checkpointing": False}
    every: list[L.Callback] = []

    def fit_again(tuned: L.LightningModule) -> None:
        trainer(tmp_path, every, **options).fit(tuned, token_loader(1, 20))

    def after_a_first_fit() -> L.LightningModule:
        every[:] = [*([SequentialTuning()] if merges else []), *METHODS["null_space"](calibration_data())]
        tuned = build(lora)
        fit_again(tuned)
        return tuned

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not as that task left them")
        tuned = after_a_first_fit()
        if lora and not merges:
            merge_lora_(tuned)
            restart_lora_(tuned, torch.Generator().manual_seed(0))
        fit_again(copy.deepcopy(tuned))  # the next task, on the same model out of a file, say
    after_a_first_fit()
    with pytest.warns(UserWarning, match=r"ended a task before, and \d+ parameters \(.*make new callbacks"):
        fit_again(build(lora))
