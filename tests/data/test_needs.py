"""A datamodule or module of the user's own: what it lacks is told before anything is trained."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.foreign_module import VOCABULARY, ForeignModule, foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS

from hpa_lightning.callbacks import HarmoniousFusion, SafetyGate, TaskEvaluation
from hpa_lightning.callbacks.baselines import ConstantRefusal, SafetyLayerFreezing
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data import EvaluationSet
from hpa_lightning.data.needs import provenance_of, records_of, refused_records


@dataclasses.dataclass(frozen=True)
class Named:
    name: str


class OwnStream(L.LightningDataModule):
    """Two tasks of one and two epochs, by nothing of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = [Named("one"), Named("two")]
        self.total_epochs = 3

    def task_at_epoch(self, epoch: int) -> Any:
        index = min(epoch, 1)
        return SimpleNamespace(index=index, task=self.tasks[index], first_epoch=index, last_epoch=2 * index)

    def train_dataloader(self) -> Any:
        return token_loader(1 + self.trainer.current_epoch, 8)


class Log(TaskCallback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.seen.append(f"{task.index} {task.name} {task.last_epoch}")


def fit(folder: Path, callbacks: list[L.Callback], data: L.LightningDataModule, module: Any = None) -> None:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora=True) if module is None else module
    quiet_trainer(folder, callbacks, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)


def changed(**members: Any) -> L.LightningDataModule:
    """The stream with other members; ``None`` takes one away."""
    return type("Changed", (OwnStream,), members)()


def test_a_stream_by_nothing_of_the_package(tmp_path: Path) -> None:
    log = Log()
    fit(tmp_path, [log], OwnStream())
    assert log.seen == ["0 one 0", "1 two 2"]


def without_tasks() -> L.LightningDataModule:
    data = OwnStream()
    del data.tasks, data.total_epochs
    return data


def span(**other: Any) -> Any:
    def task_at_epoch(self: Any, epoch: int) -> Any:
        return SimpleNamespace(**{**vars(OwnStream.task_at_epoch(self, epoch)), **other})

    return task_at_epoch


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (without_tasks, "asks the stream of tasks for tasks, total_epochs, which OwnStream does not have"),
        (
            lambda: changed(task_at_epoch=lambda self: None),
            r"task_at_epoch\(epoch\), and Changed\.task_at_epoch\(\)",
        ),
        (lambda: changed(task_at_epoch=7), r"Changed\.task_at_epoch, which is no method,"),
        (lambda: changed(task_at_epoch=lambda self, epoch: 5), r"task_at_epoch\(0\) is 5 without \['index', 'task',"),
        (lambda: changed(task_at_epoch=span(index=1)), "is task 1, epochs 0 to 0; expected task 0 from epoch 0 on"),
        (lambda: changed(task_at_epoch=span(last_epoch=9)), "epochs 0 to 9; expected task 0"),
    ],
)
def test_a_stream_that_is_none_is_told_before_the_fit(data: Any, told: str, tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(MisconfigurationException, match=told):
        fit(tmp_path, [log], data())
    assert not log.seen


def test_another_number_of_epochs_is_told(tmp_path: Path) -> None:
    data = OwnStream()
    data.total_epochs = 4
    with pytest.raises(MisconfigurationException, match="the 2 tasks of OwnStream take 3 epochs, and its total"):
        fit(tmp_path, [Log()], data)


def test_tasks_without_boundaries_are_one_task_with_a_warning(tmp_path: Path) -> None:
    class Misspelt(OwnStream):
        task_at_epoch = None
        task_of_epoch = OwnStream.task_at_epoch

        def __getattribute__(self, name: str) -> Any:
            if name == "task_at_epoch":
                raise AttributeError(name)
            return super().__getattribute__(name)

    log = Log()
    with pytest.warns(UserWarning, match=r"Misspelt has tasks and total_epochs, but no task_at_epoch\(epoch\)"):
        fit(tmp_path, [log], Misspelt())
    assert log.seen == ["0 fit None"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*task_at_epoch")
        quiet_trainer(tmp_path, [Log()], max_epochs=1).fit(
            foreign_module(OPTIMIZERS["adamw_decay"], lora=True), token_loader(1, 8)
        )


class Scored(OwnStream):
    def evaluation_sets(self) -> list[EvaluationSet]:
        return [EvaluationSet("harm", "safety", [], metric="unsafe_choice_rate")]

    def evaluation_dataloader(self, evaluation_set: EvaluationSet) -> list[Any]:
        return []


class Answering(ForeignModule):
    def generate(self, batch: Any, max_new_tokens: int | None = None) -> list[str]:
        return []


class Unbounded(ForeignModule):
    def generate(self, batch: Any) -> list[str]:
        return []


class Choosing(Answering):
    def choose(self, records: Any, collator: Any, batch_size: int) -> list[Any]:
        return []


def build(kind: type[ForeignModule]) -> ForeignModule:
    return kind(foreign_module(OPTIMIZERS["adamw_decay"], lora=True).model, OPTIMIZERS["adamw_decay"])


@pytest.mark.parametrize(
    ("callbacks", "data", "module", "told"),
    [
        (
            [TaskEvaluation],
            OwnStream,
            Choosing,
            r"TaskEvaluation asks the datamodule for evaluation_sets\(\), evaluation_dataloader\(evaluation_set\), "
            "which OwnStream does not have",
        ),
        (
            [TaskEvaluation],
            Scored,
            ForeignModule,
            r"asks the module for generate\(batch, max_new_tokens=",
        ),
        ([TaskEvaluation], Scored, Unbounded, r"generate\(batch, max_new_tokens=...\), and Unbounded.generate\(batch"),
        (
            [TaskEvaluation],
            Scored,
            Answering,
            r"asks the module for choose\(records, collator, batch_size\)",
        ),
        (
            [TaskEvaluation],
            Scored,
            Choosing,
            "asks the datamodule for collator, eval_batch_size, which Scored",
        ),
        ([lambda: SafetyGate(0.1), TaskEvaluation], OwnStream, Choosing, "asks the datamodule for evaluation_sets"),
        ([HarmoniousFusion], OwnStream, ForeignModule, r"pass safety_data= .* for harmful_calibration_records\(\)"),
        (
            [SafetyLayerFreezing],
            OwnStream,
            ForeignModule,
            r"needs a datamodule .* calibration_dataloader\(task_",
        ),
        ([ConstantRefusal], OwnStream, ForeignModule, r"generate\(batch\), which ForeignModule does not have"),
        (
            [lambda: HarmoniousFusion(safety_data=token_loader(7, 8))],
            OwnStream,
            ForeignModule,
            r"asks the stream for calibration_dataloader\(task_index, size\), which OwnStream does not have",
        ),
    ],
)
def test_what_callbacks_need_is_told_before_the_fit(
    callbacks: Any, data: Any, module: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(MisconfigurationException, match=told):
        fit(tmp_path, [make() for make in callbacks], data(), build(module))


def test_without_a_datamodule_it_is_said_that_there_is_none(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [TaskEvaluation()], max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"evaluation_sets\(\), tasks, .*; there is none\. Add it"):
        trainer.fit(build(Answering), token_loader(1, 8))
    assert VOCABULARY > 0


def test_what_may_be_missing() -> None:
    assert provenance_of(OwnStream()) == {} and refused_records(OwnStream()) is None and records_of([1, 2]) is None
    assert len(records_of(token_loader(1, 8)) or ()) == 8
