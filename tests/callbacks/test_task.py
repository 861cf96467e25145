"""Every task ends once, whatever stops or kills the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.broken_ends import OUT_OF_MEMORY, RunsOutOfMemory, stop_at_once, whole
from support.foreign_module import ForeignModule, token_loader
from support.gated_fits import callbacks as gated
from support.gated_fits import cautious, gates
from support.method_fits import calibration_data
from support.method_registry import METHODS
from support.multimodal_fits import stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import ResumableLoader, build, same, trainer

from hpa_lightning.callbacks import SafetyGate
from hpa_lightning.results.result_file import read_results


def fusions(folder: Path) -> list[int]:
    times = [event for event in read_results(folder / "results.jsonl") if event["event"] == "time"]
    return [event["step"] for event in times if event["phase"] == "fuse"]


def test_min_epochs_and_early_stopping_end_the_task_once(tmp_path: Path) -> None:
    plain = whole("post_training", False, tmp_path / "whole")
    tuned, options = build(False), {"max_epochs": 6, "min_epochs": 3, "enable_checkpointing": False}
    runner = trainer(tmp_path, [*METHODS["post_training"](calibration_data()), stop_at_once()], **options)
    runner.fit(tuned, ResumableLoader())
    assert runner.current_epoch == 3
    assert fusions(tmp_path) == [0]
    assert same(plain, tuned.state_dict())


def test_max_steps_reached_and_not_ended(tmp_path: Path) -> None:
    expected = whole("post_training", True, tmp_path / "whole")
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=15)
    every = [RunsOutOfMemory(1), *METHODS["post_training"](calibration_data()), save]
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path, every, max_steps=15, max_epochs=-1).fit(build(True), ResumableLoader())
    second, options = build(True), {"max_steps": 15, "max_epochs": -1, "enable_checkpointing": False}
    resumed = trainer(tmp_path / "second", METHODS["post_training"](calibration_data()), **options)
    resumed.fit(second, ResumableLoader(), ckpt_path=tmp_path / "step=15.ckpt")
    assert same(expected, second.state_dict()) and fusions(tmp_path / "second") == [0]


def test_a_longer_fit_goes_on_from_trained_and_not_ended(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=15)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), save]).fit(build(True), ResumableLoader())
    resumed = trainer(tmp_path / "second", METHODS["post_training"](calibration_data()), max_epochs=4)
    resumed.fit(build(True), ResumableLoader(), ckpt_path=tmp_path / "step=15.ckpt")
    assert resumed.global_step == 20 and fusions(tmp_path / "second") == [0]


def test_going_on_with_a_finished_fit_is_told_to_be_another_task(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="finished", save_last=True, save_on_train_epoch_end=True)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), save]).fit(build(True), ResumableLoader())
    resumed = trainer(tmp_path / "second", METHODS["post_training"](calibration_data()), max_epochs=4)
    with pytest.warns(UserWarning, match="what is trained now counts as another task"):
        resumed.fit(build(True), ResumableLoader(), ckpt_path=tmp_path / "last.ckpt")
    assert fusions(tmp_path / "second") == [0, 1]


@pytest.mark.parametrize("method", ["post_training", "in_training", "null_space"])
@pytest.mark.parametrize("lora", [True, False])
def test_callbacks_that_come_in_within_an_epoch_are_refused(method: str, lora: bool, tmp_path: Path) -> None:
    """Lightning does not begin the epoch again, so that they would see no task and do nothing."""
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer(tmp_path, [save], max_epochs=1).fit(build(lora), ResumableLoader())
    added = METHODS[method](calibration_data())
    resumed = trainer(tmp_path / "second", added, max_epochs=1)
    with pytest.raises(MisconfigurationException, match=rf"without {type(added[0]).__name__}.*within an epoch"):
        resumed.fit(build(lora), ResumableLoader(), ckpt_path=tmp_path / "step=2.ckpt")
    assert resumed.global_step == 2


def test_callbacks_that_come_in_between_epochs_are_told_what_they_do_not_know(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, [save], max_epochs=2).fit(build(False), ResumableLoader())
    resumed = trainer(tmp_path / "second", METHODS["post_training"](calibration_data()), max_epochs=2)
    with pytest.warns(UserWarning, match="its 5 steps count as before the task"):
        resumed.fit(build(False), ResumableLoader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert fusions(tmp_path / "second") == [0]
    idle = trainer(tmp_path / "third", METHODS["post_training"](calibration_data()), max_epochs=1)
    with pytest.warns(UserWarning, match="The fit trained no task"):
        idle.fit(build(False), ResumableLoader(), ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_checkpoint_of_half_written_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fusion,) = METHODS["post_training"](calibration_data())

    def fail(*arguments: Any) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr("hpa_lightning.callbacks.harmonious_fusion.record_audit", fail)  # after the layers were written
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path, [fusion, OnExceptionCheckpoint(tmp_path)]).fit(build(True), ResumableLoader())
    resumed = trainer(tmp_path, METHODS["post_training"](calibration_data()))
    with pytest.raises(ValueError, match=r"saved on an error while HarmoniousFusion was fusing: .*written before"):
        resumed.fit(build(True), ResumableLoader(), ckpt_path=tmp_path / "on_exception.ckpt")


@pytest.mark.parametrize("action", ["rollback", "raise_retention"])
def test_an_error_before_the_gate(ungated: tuple[bool, list[float]], action: Any, tmp_path: Path) -> None:
    lora, (first, _) = ungated

    def callbacks() -> list[L.Callback]:
        return gated(SafetyGate(0.5, action))

    def model() -> Any:
        return cautious(lora, [1e9, first * 1.01, first * 1.01])  # breaks the budget in the second task

    results = []
    for name in ("whole", "cut"):
        tuned, extra = model(), []
        if name == "cut":
            extra = [RunsOutOfMemory(92, task=1), OnExceptionCheckpoint(tmp_path)]
        runner = stream_trainer(tmp_path / name, [*callbacks(), *extra], enable_checkpointing=bool(extra))
        L.seed_everything(3, verbose=False)
        if name == "whole":
            runner.fit(tuned, stream(evaluated=True))
        else:
            with pytest.raises(torch.OutOfMemoryError):
                runner.fit(tuned, stream(evaluated=True))
            tuned = model()
            again = stream_trainer(tmp_path / name, callbacks())
            again.fit(tuned, stream(evaluated=True), ckpt_path=tmp_path / "on_exception.ckpt")
        results.append((tuned.state_dict(), gates(tmp_path / name)))
    assert results[0][1] and results[0][1] == results[1][1]
    assert same(results[0][0], results[1][0])


def test_a_loader_that_is_not_resumable(tmp_path: Path) -> None:
    """Somebody's plain DataLoader: trained, not ended, then ended without another pass over the data."""
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=15)
    first: ForeignModule = build(True)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), save]).fit(first, token_loader(1, 20))
    second = build(True)
    resumed = trainer(tmp_path / "second", METHODS["post_training"](calibration_data()), enable_checkpointing=False)
    resumed.fit(second, token_loader(1, 20), ckpt_path=tmp_path / "step=15.ckpt")
    assert resumed.global_step == 15 and same(first.state_dict(), second.state_dict())
