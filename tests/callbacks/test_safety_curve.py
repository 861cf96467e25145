"""Safety inside a task: which points are measured, on what, and after a resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.tiny_mllms import evaluation_records, tiny_llava, training_records

from hpa_lightning.callbacks import SafetyCurve, SequentialTuning, TaskEvaluation
from hpa_lightning.data import CVITDataModule, EvaluationSet, Task
from hpa_lightning.modules import MLLMModule
from hpa_lightning.report import write_report
from hpa_lightning.report.safety_curve_plot import curve_of, plot_safety_curve
from hpa_lightning.results.events import CurveEvent
from hpa_lightning.results.run_results import RunResults


def fit(folder: Path, curve: SafetyCurve, checkpoint: Path | None = None, stop: bool = False, **settings: Any) -> Any:
    torch.manual_seed(0)
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor, freeze_vision=True)
    tasks = [
        Task(name, training_records(8, seed, name), evaluation_records(5, 9 + seed, f"{name}-test"), max_new_tokens=3)
        for seed, name in enumerate(("one", "two"))
    ]
    harmful = EvaluationSet("harmful", "safety", evaluation_records(7, 5, "h"), max_new_tokens=3)
    callbacks: list[L.Callback] = [SequentialTuning(), TaskEvaluation(report=False), curve]
    if settings.pop("save", False):
        callbacks.append(ModelCheckpoint(folder / "ckpt", every_n_train_steps=3, save_top_k=-1))
    if stop:
        callbacks.append(Stop())
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        logger=CSVLogger(folder, name="", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=len(callbacks) > 3,
        callbacks=callbacks,
    )
    data = CVITDataModule(tasks, [harmful], processor=processor, train_batch_size=2, eval_batch_size=4)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module


class Stop(L.Callback):
    """Ends the process's fit as Ctrl-C does, within the second task."""

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == 7:
            raise RuntimeError("stopped")


def points(folder: Path, name: str) -> list[tuple[int, int, str]]:
    events = [event for event in RunResults.from_file(folder).events(CurveEvent) if event.set == name]
    return [(event.step, event.optimizer_step, event.moment) for event in events]


def test_points_and_their_sets(tmp_path: Path) -> None:
    fit(tmp_path, SafetyCurve(every=2, sets=["harmful", "two"], samples=3))
    # Four steps a task; at a task's end its own point takes the place of the step's.
    expected = [(0, 0, "start"), (0, 2, "step"), (0, 4, "end"), (1, 6, "step"), (1, 8, "end")]
    assert points(tmp_path, "harmful") == points(tmp_path, "two") == expected
    run = RunResults.from_file(tmp_path)
    assert {event.n for event in run.events(CurveEvent)} == {3} and not points(tmp_path, "one")
    assert run.steps == [-1, 0, 1]  # a curve is no score of a step
    assert set(curve_of(run)) == {("safety", "harmful"), ("task", "two")}
    figure = plot_safety_curve({"a": [run], "b": [run, run]})
    assert figure is not None and [len(ax.lines) for ax in figure.axes] == [2, 2]
    assert "safety-curve" in "".join(write_report([tmp_path], tmp_path / "report"))


def test_samples_of_records_that_are_scored_together_are_whole_groups() -> None:
    """Of MME, every second record would be one question of each picture, and accuracy+ the accuracy."""
    asked = evaluation_records(24, 3, "m")
    pairs = [
        replace(
            record,
            answers=("Yes",),
            group=str(number // 2 % 6),
            categories={"subtask": ("count", "color")[number // 12]},
        )
        for number, record in enumerate(asked)
    ]
    mme = EvaluationSet("mme", "helpfulness", pairs, "mme_score")
    task = Task("one", training_records(2, 0, "one"), evaluation_records(2, 9, "one-test"))
    data = CVITDataModule([task], [mme], processor=tiny_llava()[1])
    data.setup("fit")

    def chosen(samples: int) -> Any:
        return SafetyCurve(samples=samples)._cut(data, mme).data

    for samples, kept in ((12, 12), (13, 12), (5, 4), (2, 2), (23, 22)):
        groups = Counter((record.categories["subtask"], record.group) for record in chosen(samples))
        assert set(groups.values()) == {2} and groups.total() == kept, samples
    assert {record.categories["subtask"] for record in chosen(12)} == {"count", "color"}
    with pytest.raises(MisconfigurationException, match="'mme' is scored by groups of records, the first of 2"):
        chosen(1)


def test_measuring_changes_no_training(tmp_path: Path) -> None:
    measured = fit(tmp_path / "a", SafetyCurve(every=1))
    other = fit(tmp_path / "b", SafetyCurve(every=None))
    assert points(tmp_path / "b", "harmful") == [(0, 0, "start"), (0, 4, "end"), (1, 8, "end")]
    for name, tensor in measured.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_checkpoints_and_a_resume(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, SafetyCurve(every=None, samples=2), save=True)
    assert (0, 3, "checkpoint") in points(whole, "harmful") and (1, 6, "checkpoint") in points(whole, "harmful")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(cut, SafetyCurve(every=None, samples=2), stop=True, save=True)
    (saved,) = [path for path in (cut / "ckpt").glob("*.ckpt") if "step=6" in path.name]
    fit(cut, SafetyCurve(every=None, samples=2), checkpoint=saved, save=True)
    assert points(cut, "harmful") == points(whole, "harmful")
    one, other = (curve_of(RunResults.from_file(folder)) for folder in (whole, cut))
    assert one == other


def test_a_model_that_falls_silent_within_a_task_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = MLLMModule.generate

    def silent(self: MLLMModule, batch: dict[str, Any], max_new_tokens: int | None = None) -> Any:
        answers = answered(self, batch, max_new_tokens)
        answers[:] = ["..." if self.trainer.global_step >= 2 else "a"] * len(answers)
        return answers

    monkeypatch.setattr(MLLMModule, "generate", silent)
    with pytest.warns(
        UserWarning, match=r"after 2 optimizer steps gives mostly empty answers \(harmful 7 of 7\)"
    ) as told:
        fit(tmp_path, SafetyCurve(every=1, sets=["harmful"]))
    assert sum("optimizer steps gives mostly empty" in str(one.message) for one in told) == 1
    assert {event.empty for event in RunResults.from_file(tmp_path).events(CurveEvent)} == {0, 7}


def test_what_cannot_be_measured_is_told_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"no evaluation set 'harmfull'; the datamodule has"):
        fit(tmp_path, SafetyCurve(sets=["harmfull"]))
    with pytest.raises(ValueError, match="every is 0"):
        SafetyCurve(every=0)
