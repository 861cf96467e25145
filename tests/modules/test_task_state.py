"""Where the weights of a module stand: said in checkpoints, and asked before they are exported or tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import token_loader
from support.method_fits import calibration_data
from support.method_registry import METHODS
from support.multimodal_fits import method, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import build, trainer

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.task_state import TASK_STATE


def test_a_checkpoint_says_whether_it_is_fused(tmp_path: Path) -> None:
    """Of weights alone too; loading, testing and exporting an unfinished one is not silent."""
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_weights_only=True)
    ends = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    tuned = module()
    every = [SequentialTuning(), *method("post_training"), save, ends]
    stream_trainer(tmp_path, every, enable_checkpointing=True).fit(tuned, stream())
    states = {step: torch.load(tmp_path / f"step={step}.ckpt")[TASK_STATE] for step in (2, 3)}
    assert [states[step]["trained"] for step in (2, 3)] == [False, True]
    assert states[3]["task"] == "first" and states[3]["pending"] == ["HarmoniousFusion"]
    assert torch.load(tmp_path / "epoch=0.ckpt")[TASK_STATE]["pending"] == []
    tuned.export(tmp_path / "done")

    def loaded(name: str) -> MLLMModule:
        fresh = module()
        fresh.on_load_checkpoint(torch.load(tmp_path / name))  # as `load_from_checkpoint` calls it
        return fresh

    with pytest.warns(
        UserWarning, match=r"load_from_checkpoint: the weights are from before the end of task 0 \('first'"
    ):
        unfused = loaded("step=3.ckpt")
    with pytest.raises(ValueError, match=r"what HarmoniousFusion does .* has not been done. Resume .* or pass export"):
        unfused.export(tmp_path / "not")
    assert not (tmp_path / "not").exists()
    unfused.export(tmp_path / "asked_for", unfinished=True)
    loaded("epoch=0.ckpt").export(tmp_path / "fused")
    with pytest.warns(UserWarning, match="validate: the weights are from in the middle of task 0"):
        stream_trainer(tmp_path, []).validate(module(), stream(), ckpt_path=tmp_path / "step=2.ckpt", verbose=False)


def test_a_model_whose_task_was_cut_short_is_not_exported(tmp_path: Path) -> None:
    tuned = module()
    stream_trainer(tmp_path, [SequentialTuning(), *method("post_training")], max_steps=5).fit(tuned, stream())
    with pytest.raises(ValueError, match=r"in the middle of task 1 \('second'\): what HarmoniousFusion does"):
        tuned.export(tmp_path / "not")


def test_a_trainer_that_only_tests_does_not_make_a_model_finished(tmp_path: Path) -> None:
    """Its callbacks, if they are those of the method, have seen no fit and know nothing of the weights."""

    def test_it(tuned: MLLMModule, callbacks: list[L.Callback]) -> None:
        stream_trainer(tmp_path, callbacks).test(tuned, stream(), verbose=False)

    def method_s() -> list[L.Callback]:
        return [SequentialTuning(), *method("post_training")]

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    cut = module()
    stream_trainer(tmp_path, [*method_s(), save], enable_checkpointing=True, max_steps=5).fit(cut, stream())
    loaded = module()
    with pytest.warns(UserWarning, match="load_from_checkpoint: the weights are from before the end of task 0"):
        loaded.on_load_checkpoint(torch.load(tmp_path / "step=3.ckpt"))
    for tuned in (cut, loaded):
        for callbacks in ([], method_s()):
            test_it(tuned, callbacks)
            with pytest.raises(ValueError, match="what HarmoniousFusion does to them at its end has not been done"):
                tuned.export(tmp_path / "not")
    done = module()
    stream_trainer(tmp_path, method_s()).fit(done, stream())
    test_it(done, [])
    done.export(tmp_path / "done")
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("finished_before", [True, False])
def test_a_fit_that_failed_leaves_the_module_unfinished(finished_before: bool, tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise RuntimeError("power cut")

    tuned = module()
    if finished_before:
        stream_trainer(tmp_path, [SequentialTuning(), *method("post_training")]).fit(tuned, stream())
    with pytest.raises(RuntimeError, match="power cut"):
        stream_trainer(tmp_path, [Fails(), SequentialTuning(), *method("post_training")]).fit(tuned, stream())
    stream_trainer(tmp_path, []).test(tuned, stream(), verbose=False)
    with pytest.raises(ValueError, match=r"from before the end of task 0 \('first'\)"):
        tuned.export(tmp_path / "not")


def test_testing_somebody_s_module_from_an_unfused_checkpoint(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3)
    every = [*METHODS["post_training"](calibration_data()), save]
    trainer(tmp_path, every, max_epochs=1).fit(build(True), token_loader(1, 20))

    class Predicts(type(build(True))):  # type: ignore[misc]
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(batch["input_ids"])

    tuned = build(True)
    tuned.__class__ = Predicts
    with pytest.warns(UserWarning, match=r"predict: the weights are from in the middle of task 0 \('fit'\)"):
        runner = trainer(tmp_path, METHODS["post_training"](calibration_data()))
        runner.predict(tuned, token_loader(1, 4), ckpt_path=tmp_path / "step=3.ckpt")
