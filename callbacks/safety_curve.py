"""SafetyCurve: safety and task scores inside a task, every few optimizer steps and at checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_evaluation import score_set
from hpa_lightning.data.needs import evaluation_data, records_of
from hpa_lightning.data.protocols import EvaluationData
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.decoding import decoding_of
from hpa_lightning.evaluation import check_scoring
from hpa_lightning.metrics.scoring import broken_not_safe, listed, metric_of, mostly_empty, score_fields
from hpa_lightning.metrics.tasks.grouped import GroupedMetric, subtasks_of
from hpa_lightning.results.events import CurveEvent
from hpa_lightning.trainer_attributes import is_dev_run, log_metrics
from hpa_lightning.values import names


class SafetyCurve(TaskCallback):
    """Scores evaluation sets while a task is trained, so that the loss of safety can be seen step by step.

    :class:`TaskEvaluation` scores at the tasks' ends; this one in between, on the same sets by the same metrics. Each
    point is an event ``curve`` for each set in the run's results, of which `report` draws the curve. The random state
    is put back, so that measuring changes no training. A point that a resumed run measures again replaces the first.

    Hooks: task start (the first one), ``on_train_batch_end``, ``on_save_checkpoint``, task end (after methods that
    write weights).
    State: the points. Strategies: one device; DDP and FSDP2 (the ranks share the batches, rank zero writes).

    Args:
        every: optimizer steps between two points; ``None``: none but at checkpoints and at the ends of tasks.
        sets: names of the evaluation sets, tasks' names among them; all when ``None``.
        samples: at most so many records of each set, spread over it evenly and the same at every point; all when
            ``None``. Of sets whose records are scored in groups (MMBench, MME) whole groups.
        checkpoints: measure the weights of every checkpoint that is written while a task is trained.

    Raises:
        ValueError: numbers below 1.
        MisconfigurationException: before the fit: a set that the datamodule does not have; at the first point: samples
            for less than a group.

    Example:
        >>> from hpa_lightning.callbacks import SafetyCurve, SequentialTuning, TaskEvaluation
        >>> callbacks = [SequentialTuning(), TaskEvaluation(), SafetyCurve(every=100, samples=50)]
    """

    start_order: ClassVar[int] = StartPhase.ANSWERING
    end_order: ClassVar[int] = EndPhase.CURVE
    shapes_training: ClassVar[bool] = False

    def __init__(
        self,
        every: int | None = 100,
        sets: list[str] | None = None,
        samples: int | None = None,
        checkpoints: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("every", every), ("samples", samples)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1, or None.")
        self.every = every
        self.sets = sets
        self.samples = samples
        self.checkpoints = checkpoints
        self._measured = -1  # the optimizer step of the last point
        self._silent = False  # the last point's answers were mostly empty, which has been reported
        self._chosen: list[tuple[EvaluationSet, EvaluationSet]] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._measured, self._chosen = -1, None
        data = evaluation_data(trainer, "SafetyCurve")
        check_scoring(data, pl_module, "SafetyCurve")
        known = [item.name for item in data.evaluation_sets()]
        if unknown := [name for name in self.sets or () if name not in known]:
            raise MisconfigurationException(
                f"SafetyCurve: there is no evaluation set {unknown[0]!r}; the datamodule has {names(known)}."
            )

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index == 0:
            self._measure(trainer, pl_module, "start")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step = trainer.global_step
        if self.every is not None and step > 0 and step % self.every == 0 and not self._trained:
            self._measure(trainer, pl_module, "step")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        # Not one that is saved on an error: the model may be anywhere then.
        if self.checkpoints and trainer.training and trainer.state.status == "running" and not self._ended:
            self._measure(trainer, pl_module, "checkpoint")

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._measured = -1  # a method may have written weights since the last step
        self._measure(trainer, pl_module, "end")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._measured = state_dict.get("measured", -1)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, moment: str) -> None:
        step = trainer.global_step
        if step == self._measured or self._open_task is None or is_dev_run(trainer):
            return
        self._measured = step
        points: dict[str, float] = {}
        counts: dict[str, dict[str, Any]] = {}
        for item, cut in self._sets_of(trainer):
            scored = score_set(trainer, pl_module, cut)
            fields = score_fields(item, scored.score, scored.rows, decoding_of(item, pl_module))
            self.record(
                trainer,
                CurveEvent(step=self._open_task, optimizer_step=step, moment=moment, task=self._task_name, **fields),
            )
            points[f"curve/{item.name}"] = scored.score
            counts[item.name] = fields
        log_metrics(trainer, points, step)
        shown = ", ".join(f"{name.removeprefix('curve/')} {100 * score:.1f} %" for name, score in points.items())
        rank_zero_info(f"After {step} optimizer steps: {shown}")
        empty = mostly_empty(counts)
        if empty and not self._silent:
            rank_zero_warn(broken_not_safe(f"The model after {step} optimizer steps", listed(empty)))
        self._silent = bool(empty)

    def _sets_of(self, trainer: L.Trainer) -> Sequence[tuple[EvaluationSet, EvaluationSet]]:
        """The chosen sets, and each of them cut to its samples."""
        if self._chosen is None:
            data = evaluation_data(trainer, "SafetyCurve")
            chosen = [item for item in data.evaluation_sets() if self.sets is None or item.name in self.sets]
            self._chosen = [(item, self._cut(data, item)) for item in chosen]
        return self._chosen

    def _cut(self, data: EvaluationData, item: EvaluationSet) -> EvaluationSet:
        if self.samples is None:
            return item
        records = records_of(data.evaluation_dataloader(item))
        if records is None:
            raise MisconfigurationException(
                f"SafetyCurve(samples={self.samples}): the loader of {item.name!r} has no dataset of records to choose "
                "from; leave samples out."
            )
        if len(records) <= self.samples:
            return item
        if isinstance(metric_of(item), GroupedMetric):
            spread = _whole_groups(item.name, records, self.samples)
        else:
            spread = [records[number * len(records) // self.samples] for number in range(self.samples)]
        # Under a name of its own, since a datamodule reads each set once by its name.
        return dataclasses.replace(item, name=f"{item.name}, {self.samples} samples", data=spread)


def _whole_groups(name: str, records: Sequence[Record], samples: int) -> list[Record]:
    """At most so many records in groups that are scored together, the groups spread evenly over the set."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record, subtask in zip(records, subtasks_of([record.categories for record in records]), strict=True):
        groups.setdefault((subtask, record.group), []).append(record)
    found = list(groups.values())
    for count in range(samples * len(found) // len(records) + 1, 0, -1):
        spread = [record for number in range(count) for record in found[number * len(found) // count]]
        if len(spread) <= samples:
            return spread
    raise MisconfigurationException(
        f"SafetyCurve(samples={samples}): {name!r} is scored by groups of records, the first of {len(found[0])}; "
        "expected samples for at least one group."
    )
