"""A fit leaves a checkpoint of the finished model, and one that left a task open does not look complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from support.broken_ends import RunsOutOfMemory, stop_at_once, whole
from support.foreign_module import ForeignModule, token_loader
from support.gated_fits import callbacks as gated
from support.gated_fits import cautious, gates
from support.method_fits import calibration_data
from support.method_registry import METHODS, TUNING_IDS, TUNINGS
from support.multimodal_fits import method, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import ResumableLoader, build, same, trainer

from hpa_lightning.callbacks import SafetyGate, SequentialTuning, TaskEvaluation
from hpa_lightning.callbacks.fit_end import unfinished
from hpa_lightning.cli import main
from hpa_lightning.modules.task_state import TASK_STATE
from hpa_lightning.results.run_results import RunResults


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the fit says that is no warning."""
    lines: list[str] = []
    monkeypatch.setattr("hpa_lightning.callbacks.task.rank_zero_info", lines.append)
    return lines


def holding(folder: Path, tuned: torch.nn.Module) -> list[str]:
    """Names of the checkpoints that hold the model as it is now, after its last task's end."""
    files = {path.name: torch.load(path) for path in folder.glob("*.ckpt")}
    return sorted(
        name
        for name, content in files.items()
        if content[TASK_STATE]["open_task"] is None and same(tuned.state_dict(), content["state_dict"])
    )


def test_a_stream_with_checkpoints_of_steps_alone(tmp_path: Path, told: list[str]) -> None:
    """Nine steps: the checkpoints are all from the middle of a task."""

    def callbacks(folder: str) -> list[Any]:
        save = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        return [SequentialTuning(), *method("post_training"), TaskEvaluation(method="HPA", initial=False), save]

    tuned = module()
    stream_trainer(tmp_path / "run", callbacks("ck"), enable_checkpointing=True).fit(tuned, stream(evaluated=True))
    assert {path.name for path in (tmp_path / "ck").iterdir()} == {
        *(f"step={step}.ckpt" for step in (2, 4, 6, 8)),
        "finished.ckpt",
    }
    assert holding(tmp_path / "ck", tuned) == ["finished.ckpt"]
    assert told == [
        f"The finished model is in {tmp_path / 'ck' / 'finished.ckpt'}, which was written when the fit ended."
    ]
    # Gone on with, it is the finished fit: nothing is trained, and nothing is written.
    again = module()
    runner = stream_trainer(tmp_path / "run", callbacks("second"), enable_checkpointing=True)
    runner.fit(again, stream(evaluated=True), ckpt_path=tmp_path / "ck" / "finished.ckpt")
    assert runner.global_step == 9 and same(tuned.state_dict(), again.state_dict())
    assert not list((tmp_path / "second").glob("*.ckpt"))


class Validated(ForeignModule):
    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("steps", float(self.trainer.global_step))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["epoch=2.ckpt"]),
        ({"every_n_epochs": 2, "save_top_k": -1}, ["finished.ckpt"]),
        ({"every_n_train_steps": 5, "save_top_k": -1}, ["finished.ckpt"]),  # the last one after the last batch
        ({"every_n_train_steps": 5, "save_last": True}, ["last.ckpt"]),
        ({"every_n_train_steps": 5, "save_last": "link"}, ["last.ckpt"]),
        ({"every_n_train_steps": 99, "save_last": True}, ["last.ckpt"]),  # Lightning writes it, once
        ({"every_n_train_steps": 99}, ["finished.ckpt"]),
        ({"monitor": "loss", "mode": "max"}, ["finished.ckpt"]),  # the best is the first
        ({"save_top_k": 0}, []),
    ],
    ids=str,
)
def test_one_checkpoint_holds_the_finished_model(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", **settings)
    tuned = build(True)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), save]).fit(tuned, ResumableLoader())
    assert holding(tmp_path, tuned) == expected


def test_checkpoints_of_a_validation_are_from_before_the_end(tmp_path: Path) -> None:
    tuned = build(True)
    tuned.__class__ = Validated
    save = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="steps", mode="max")
    fitting = trainer(
        tmp_path, [*METHODS["post_training"](calibration_data()), save], max_epochs=1, val_check_interval=5
    )
    fitting.fit(tuned, token_loader(1, 20), token_loader(2, 4))
    assert (tmp_path / "epoch=0.ckpt").exists() and holding(tmp_path, tuned) == ["finished.ckpt"]


def test_two_that_write_and_one_of_them_has_it(tmp_path: Path, told: list[str]) -> None:
    saves = [
        ModelCheckpoint(tmp_path / "steps", every_n_train_steps=4, save_top_k=-1),
        ModelCheckpoint(tmp_path / "epochs", filename="{epoch}"),
    ]
    tuned = build(True)
    trainer(tmp_path, [*METHODS["post_training"](calibration_data()), *saves]).fit(tuned, ResumableLoader())
    assert holding(tmp_path / "epochs", tuned) == ["epoch=2.ckpt"] and not holding(tmp_path / "steps", tuned)
    assert told == []


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
    expected = whole(name, lora, tmp_path_factory.getbasetemp() / "whole", epochs=1)
    cut = trainer(
        tmp_path,
        [*METHODS[name](calibration_data()), RunsOutOfMemory(order), OnExceptionCheckpoint(tmp_path)],
        max_epochs=1,
    )
    with pytest.raises(torch.OutOfMemoryError):
        cut.fit(build(lora), ResumableLoader())
    second = build(lora)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)  # everything must come from the checkpoint
    save = ModelCheckpoint(tmp_path / "second", save_last=True)
    resumed = trainer(tmp_path / "second", [*METHODS[name](calibration_data()), save], max_epochs=1)
    resumed.fit(second, ResumableLoader(), ckpt_path=tmp_path / "on_exception.ckpt")
    assert resumed.global_step == 5 and unfinished(resumed) is None
    assert same(expected, second.state_dict())
    (written,) = (tmp_path / "second").glob("*.ckpt")
    assert same(expected, torch.load(written)["state_dict"])


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


def test_the_command_fails_when_the_stream_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cli:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.trainer = stream_trainer(tmp_path, [SequentialTuning()], max_steps=4)
            self.trainer.fit(module(), stream())

    monkeypatch.setattr("hpa_lightning.lightning_commands.TuningCLI", Cli)
    with pytest.raises(SystemExit, match=r"fit: The fit stopped in the middle of task 1 \('second'\)"):
        main(["fit"])
