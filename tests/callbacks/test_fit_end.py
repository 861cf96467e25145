"""A fit whose trainer writes checkpoints leaves one of the finished model, whatever the ModelCheckpoint is set to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import ForeignModule, token_loader
from support.method_fits import calibration_data
from support.method_registry import METHODS
from support.multimodal_fits import method, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import ResumableLoader, build, same, trainer

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.modules.task_state import TASK_STATE


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
