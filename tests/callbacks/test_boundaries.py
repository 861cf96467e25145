"""Every task ends once, whatever stops or kills the fit, and a fit that left one open does not look complete."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from support.foreign_module import ForeignModule, token_loader
from support.gated_fits import callbacks as gated
from support.gated_fits import cautious, gates
from support.method_fits import calibration_data
from support.method_registry import METHODS, TUNING_IDS, TUNINGS
from support.multimodal_fits import method, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import ResumableLoader, build, same, trainer

from hpa_lightning.callbacks import SafetyGate, SequentialTuning, TaskCallback, TaskEvaluation
from hpa_lightning.callbacks.fit_end import unfinished
from hpa_lightning.callbacks.task import CurrentTask
from hpa_lightning.cli import main
from hpa_lightning.modules.task_state import TASK_STATE
from hpa_lightning.results.result_file import read_results
from hpa_lightning.results.run_results import RunResults

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class RunsOutOfMemory(TaskCallback):
    """Stands for an error in another task callback, before or after those of the method."""

    shapes_training = False

    def __init__(self, end_order: int, task: int = 0) -> None:
        super().__init__()
        self.end_order = end_order  # type: ignore[misc]
        self.task = task

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index == self.task:
            raise OUT_OF_MEMORY


def stop_at_once() -> EarlyStopping:
    return EarlyStopping("loss", stopping_threshold=1e9, mode="min", check_on_train_epoch_end=True)


def fusions(folder: Path) -> list[int]:
    times = [event for event in read_results(folder / "results.jsonl") if event["event"] == "time"]
    return [event["step"] for event in times if event["phase"] == "fuse"]


@cache
def whole(name: str, lora: bool, folder: Path) -> dict[str, torch.Tensor]:
    tuned = build(lora)
    trainer(folder, METHODS[name](calibration_data()), enable_checkpointing=False).fit(tuned, ResumableLoader())
    return tuned.state_dict()


def test_min_epochs_and_early_stopping_end_the_task_once(tmp_path: Path) -> None:
    plain = whole("post_training", False, tmp_path / "whole")
    tuned, options = build(False), {"max_epochs": 6, "min_epochs": 3, "enable_checkpointing": False}
    runner = trainer(tmp_path, [*METHODS["post_training"](calibration_data()), stop_at_once()], **options)
    runner.fit(tuned, ResumableLoader())
    assert runner.current_epoch == 3
    assert fusions(tmp_path) == [0]
    assert same(plain, tuned.state_dict())


@pytest.mark.parametrize("save_last", [True, False, "link"])
def test_a_task_that_ends_after_the_last_checkpoint_is_saved_once_more(save_last: Any, tmp_path: Path) -> None:
    tuned = build(True)
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_last=save_last)
    every = [*METHODS["post_training"](calibration_data()), stop_at_once(), save]
    with pytest.warns(UserWarning, match="ended after the last checkpoint was written. The model as it is now is in"):
        trainer(tmp_path, every).fit(tuned, ResumableLoader())
    kept = torch.load(tmp_path / ("last.ckpt" if save_last else "finished.ckpt"))
    assert same(tuned.state_dict(), kept["state_dict"]) and kept[TASK_STATE]["open_task"] is None
    before = torch.load(tmp_path / "epoch=0.ckpt")
    assert before[TASK_STATE]["pending"] == ["HarmoniousFusion"]
    assert not same(tuned.state_dict(), before["state_dict"])


def test_last_checkpoint_of_a_step_interval_holds_the_fused_model(tmp_path: Path) -> None:
    tuned = build(True)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_last=True)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), save]).fit(tuned, ResumableLoader())
    last = torch.load(tmp_path / "last.ckpt")
    assert same(tuned.state_dict(), last["state_dict"]) and last[TASK_STATE]["open_task"] is None
    assert torch.load(tmp_path / "step=15.ckpt")[TASK_STATE]["trained"]


@pytest.mark.parametrize(("name", "lora"), TUNINGS, ids=TUNING_IDS)
@pytest.mark.parametrize("order", [1, 60], ids=["before_the_method", "after_the_method"])
def test_an_error_in_the_task_end_is_made_up_for(
    name: str, lora: bool, order: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All epochs are processed then, and Lightning finds nothing to train: no hook runs but `on_fit_end`."""
    expected = whole(name, lora, tmp_path_factory.getbasetemp() / "whole")
    cut = trainer(
        tmp_path,
        [*METHODS[name](calibration_data()), RunsOutOfMemory(order), OnExceptionCheckpoint(tmp_path)],
    )
    with pytest.raises(torch.OutOfMemoryError):
        cut.fit(build(lora), ResumableLoader())
    second = build(lora)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)  # everything must come from the checkpoint
    save = ModelCheckpoint(tmp_path / "second", save_last=True)
    resumed = trainer(tmp_path / "second", [*METHODS[name](calibration_data()), save])
    resumed.fit(second, ResumableLoader(), ckpt_path=tmp_path / "on_exception.ckpt")
    assert resumed.global_step == 15 and unfinished(resumed) is None
    assert same(expected, second.state_dict())
    (written,) = (tmp_path / "second").glob("*.ckpt")
    assert same(expected, torch.load(written)["state_dict"])


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


class StopAfter(L.Callback):
    """Stands for EarlyStopping, at the end of an epoch of the stream."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


def test_a_stream_that_is_stopped_between_tasks_says_so(tmp_path: Path) -> None:
    every = [SequentialTuning(), TaskEvaluation(method="HPA", initial=False), StopAfter(0)]
    runner = stream_trainer(tmp_path, every)
    with pytest.warns(UserWarning, match="The fit stopped after 1 of 2 tasks"):
        runner.fit(module(), stream(evaluated=True))
    assert (unfinished(runner) or "").startswith("The fit stopped after 1 of 2 tasks")
    assert RunResults.from_file(tmp_path).method == "HPA (1 of 2 tasks)"
    assert "HPA (1 of 2 tasks)" in (tmp_path / "report" / "report.html").read_text()


def test_a_stream_whose_gate_stopped_it_is_not_cut_short(tmp_path: Path) -> None:
    tuned = cautious(True, [1e9, 0.0, 0.0])
    runner = stream_trainer(tmp_path, gated(SafetyGate(0.5, "stop")))
    runner.fit(tuned, stream(evaluated=True))
    assert gates(tmp_path)[0]["action"] == "stop" and unfinished(runner) is None
    assert RunResults.from_file(tmp_path).method.endswith("(1 of 2 tasks)")


def test_an_error_between_fusion_and_the_scores_of_the_last_task(tmp_path: Path) -> None:
    def callbacks() -> list[L.Callback]:
        return [SequentialTuning(), *method("post_training"), TaskEvaluation(method="HPA", initial=False)]

    tuned = module()
    stream_trainer(tmp_path / "whole", callbacks()).fit(tuned, stream(evaluated=True))
    cut = stream_trainer(
        tmp_path,
        [*callbacks(), RunsOutOfMemory(30, task=1), OnExceptionCheckpoint(tmp_path)],
        enable_checkpointing=True,
    )
    with pytest.raises(torch.OutOfMemoryError):
        cut.fit(module(), stream(evaluated=True))
    assert RunResults.from_file(tmp_path).method == "HPA (1 of 2 tasks)"
    second = module()
    resumed = stream_trainer(tmp_path, callbacks())
    resumed.fit(second, stream(evaluated=True), ckpt_path=tmp_path / "on_exception.ckpt")
    assert same(tuned.state_dict(), second.state_dict()) and unfinished(resumed) is None
    results = RunResults.from_file(tmp_path)
    assert results.method == "HPA" and len(results.events("resume")) == 1
    assert (results.matrix() == RunResults.from_file(tmp_path / "whole").matrix())[1].all()
    assert (tmp_path / "report" / "report.html").is_file()


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


def test_the_command_fails_when_the_stream_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cli:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.trainer = stream_trainer(tmp_path, [SequentialTuning()], max_steps=4)
            self.trainer.fit(module(), stream())

    monkeypatch.setattr("hpa_lightning.lightning_commands.TuningCLI", Cli)
    with pytest.raises(SystemExit, match=r"fit: The fit stopped in the middle of task 1 \('second'\)"):
        main(["fit"])


def test_a_loader_that_is_not_resumable(tmp_path: Path) -> None:
    """Somebody's plain DataLoader: trained, not ended, then ended without another pass over the data."""
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=15)
    first: ForeignModule = build(True)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), save]).fit(first, token_loader(1, 20))
    second = build(True)
    resumed = trainer(tmp_path / "second", METHODS["post_training"](calibration_data()), enable_checkpointing=False)
    resumed.fit(second, token_loader(1, 20), ckpt_path=tmp_path / "step=15.ckpt")
    assert resumed.global_step == 15 and same(first.state_dict(), second.state_dict())
