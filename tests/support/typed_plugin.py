"""What somebody else writes with annotations, on the public names; plain `mypy` checks it (see pyproject.toml)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L

from hpa_lightning.answering import AnsweringModule, ChoosingModule, OpeningModule, ScoredModule
from hpa_lightning.callbacks import CurrentTask, HarmoniousFusion, TaskEvaluation
from hpa_lightning.callbacks.phases import EndPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.data import CVITDataModule, MLLMCollator
from hpa_lightning.data.protocols import (
    ChoiceData,
    Collator,
    CountedStream,
    FingerprintedData,
    OpeningCollator,
    PromptData,
    Provenance,
    RefusedData,
    TaskStream,
    ValidationData,
)
from hpa_lightning.modules import MLLMModule


class Counts(TaskCallback):
    """Between two phases."""

    end_order: ClassVar[int] = EndPhase.FUSING - 1

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.record(trainer, "counted", step=task.index)


class Halves(TaskEndFusion):
    """Half of every update."""

    def fuse(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.starts_writing("halving")
        for linear in self.layers:
            linear.write_((linear.before() + linear.dense_after()) / 2)


@dataclass(frozen=True)
class OwnTask:
    name: str


@dataclass(frozen=True)
class OwnSpan:
    index: int
    task: OwnTask
    first_epoch: int
    last_epoch: int


class OwnStream(L.LightningDataModule):
    """One epoch for each task, by nothing of the package."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.tasks = [OwnTask(name) for name in names]
        self.total_epochs = len(self.tasks)

    def task_at_epoch(self, epoch: int) -> OwnSpan:
        return OwnSpan(epoch, self.tasks[epoch], epoch, epoch)


class OwnModule(MLLMModule):
    """A module of one's own keeps the types."""

    def answers(self, batch: dict[str, Any]) -> list[str]:
        return list(self.generate(batch, max_new_tokens=4))


def callbacks() -> list[L.Callback]:
    return [Counts(), Halves(), HarmoniousFusion(), TaskEvaluation(method="mine")]


def conform(stream: OwnStream, data: CVITDataModule, module: MLLMModule, collator: MLLMCollator) -> None:
    """An assignment is an error of the type checker where the class does not conform."""
    own: TaskStream = stream
    streams: tuple[CountedStream, PromptData, ChoiceData, ValidationData] = (data, data, data, data)
    told: tuple[RefusedData, Provenance, FingerprintedData] = (data, data, data)
    modules: tuple[AnsweringModule, ScoredModule, ChoosingModule] = (module, module, module)
    opens: OpeningModule = module
    makes: tuple[Collator, OpeningCollator] = (collator, collator)
    assert own and streams and told and modules and opens and makes
