"""TaskEvaluation: after every task, all tasks and all safety sets are scored."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tqdm.auto import tqdm

from hpa_lightning.callbacks.allow_changes import AllowChanges
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.fit_end import unfinished
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.running import (
    counted,
    evaluation_mode,
    forward_context,
    in_lockstep,
    local_share,
    to_device,
)
from hpa_lightning.callbacks.sequential_tuning import SequentialTuning
from hpa_lightning.callbacks.shared_scores import shared_scores
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data.needs import evaluation_data, provenance_of, records_of
from hpa_lightning.data.record import Record, open_image
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.decoding import decoding_of
from hpa_lightning.evaluation import ScoredSet, SetScoring, check_scoring
from hpa_lightning.files import whole_file
from hpa_lightning.metrics.scoring import broken_not_safe, listed
from hpa_lightning.modules.emulated_bfloat16 import precision_of
from hpa_lightning.modules.fsdp import is_sharded
from hpa_lightning.peak_memory import peak_memory
from hpa_lightning.redaction import masked_values
from hpa_lightning.results.events import EndEvent, ResumeEvent, RunEvent, ScoreEvent
from hpa_lightning.results.predictions import FOLDER as PREDICTIONS
from hpa_lightning.results.predictions import prediction_file, write_rows
from hpa_lightning.results.result_file import RESULT_FILE
from hpa_lightning.results.run_results import COUNTED, RunResults, run_origin
from hpa_lightning.run_folder import claim_folder, new_identity, unlock_folder
from hpa_lightning.trainer_attributes import callbacks_of, is_dev_run, log_metrics, results_directory

# Pixels of the longer side of the images that are kept beside the answers.
_IMAGE_SIDE = 160


class TaskEvaluation(TaskCallback):
    """Scores all tasks, the safety sets and over-refusal after every task and fills the matrix R.

    A folder holds one run: a fit that would write into the folder of a finished one, or of one that another process
    makes, is refused (:mod:`hpa_lightning.run_folder`).

    The aligned model is scored before the first task (step -1). Every score goes to ``results.jsonl`` in the logger's
    folder, to the logger, and into the checkpoint; raw answers are kept as JSON lines (prompt, decoding settings,
    answer, verdict of the judge); tables, plots and an HTML page are written at the end of the fit. The random state is
    put back, so that evaluating changes no training.

    Hooks: after a resume, task start (the first one), task end (after fusion and merge), ``on_train_epoch_end``, the
    end of the fit.
    State: the scores. Strategies: one device; DDP and FSDP2 (the ranks share the batches, rank zero writes).

    Args:
        method: the name of the method in tables; made from the trainer's callbacks when ``None``.
        initial: score the model before the first task; needed for DASR.
        keep_predictions: write prompts and raw answers to ``predictions/``, and small copies of the images.
        report: write tables, plots and the HTML page at the end of the fit.

    Raises:
        MisconfigurationException: before the fit: a datamodule that lacks what the scores need.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
        >>> callbacks = [SequentialTuning(), TaskEvaluation(method="SeqFT")]     # of a Trainer, over a stream of tasks
    """

    start_order: ClassVar[int] = StartPhase.EVALUATION
    end_order: ClassVar[int] = EndPhase.EVALUATION
    shapes_training: ClassVar[bool] = False

    def __init__(
        self,
        method: str | None = None,
        initial: bool = True,
        keep_predictions: bool = True,
        report: bool = True,
    ) -> None:
        super().__init__()
        self.method = method
        self.initial = initial
        self.keep_predictions = keep_predictions
        self.report = report
        self._to_log: dict[str, float] = {}
        self._run = new_identity()
        self._claimed: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_scoring(evaluation_data(trainer, "TaskEvaluation"), pl_module, "TaskEvaluation")

    def on_fit_begins(self, trainer: L.Trainer, resumed: bool) -> None:
        """Take the folder of the results for this run; every process raises if that is not possible."""
        folder, error = results_directory(trainer), None
        if is_dev_run(trainer):
            return
        self._claimed = folder
        if not resumed:
            self._run = new_identity()
        if trainer.is_global_zero:
            changed = any(isinstance(item, AllowChanges) and item.allowed for item in callbacks_of(trainer))
            try:
                claim_folder(folder, self._run, resumed, changed)
            except ValueError as refused:
                error = str(refused)
        self._run = trainer.strategy.broadcast(self._run)
        if (error := trainer.strategy.broadcast(error)) is not None:
            raise MisconfigurationException(error)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and self._claimed is not None and trainer.is_global_zero:
            unlock_folder(self._claimed)
            self._claimed = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"run": self._run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._run = state_dict.get("run") or new_identity()

    def on_restored(self, trainer: L.Trainer) -> None:
        super().on_restored(trainer)
        step = self._finished_tasks if self._open_task is None else self._open_task
        allowed = [name for item in callbacks_of(trainer) if isinstance(item, AllowChanges) for name in item.allowed]
        self.record(
            trainer,
            ResumeEvent(
                step=step,
                changes=tuple(allowed) or None,
                **run_origin(trainer.strategy.root_device, precision_of(trainer)),
            ),
        )

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index > 0:
            return
        self._record_run(trainer)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index == 0 and self.initial:
            self._evaluate(trainer, pl_module, -1, None)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._evaluate(trainer, pl_module, task.index, task.name)

    def evaluate_again(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Score all sets again after a task, since the weights have changed; the new scores count."""
        self._evaluate(trainer, pl_module, task.index, task.name, phase="evaluate_again")

    def mean_attack_success_rate(self, step: int) -> float:
        """The mean over the safety sets after task ``step`` (-1: the aligned model), a fraction."""
        return RunResults(list(self._events)).summary(step)["MASR"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._to_log:
            pl_module.log_dict(self._to_log, rank_zero_only=True)  # so that ModelCheckpoint can monitor them
            self._to_log = {}

    def on_tasks_done(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        directory = results_directory(trainer)
        if unfinished(trainer) is None:
            tasks = len(evaluation_data(trainer, "TaskEvaluation").tasks)
            held = peak_memory(trainer.strategy.root_device)
            self.record(trainer, EndEvent(finished_tasks=self._finished_tasks, tasks=tasks, peak_memory=held))
        if self.report and trainer.is_global_zero and (directory / RESULT_FILE).exists():
            from hpa_lightning.report import write_report  # matplotlib, which training does not need

            page = write_report([directory], directory / "report", unfinished=True)["html"]
            rank_zero_info(f"Report: {page}")

    def _evaluate(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        step: int,
        after: str | None,
        phase: str = "evaluate",
    ) -> None:
        data = evaluation_data(trainer, "TaskEvaluation")
        sets = data.evaluation_sets()
        shared = shared_scores(trainer, pl_module, data, sets) if step < 0 else None
        known = None if shared is None else shared.known()
        if shared is not None and known is not None:
            rank_zero_info(f"Aligned model: scores as another fit of the study measured them, {shared.file}.")
        scored: list[ScoredSet] = []
        bar = tqdm(
            total=len(sets),
            desc="Evaluating " + ("the aligned model" if after is None else f"after {after}"),
            leave=False,
            disable=not (trainer.is_global_zero and trainer.progress_bar_callback is not None),
        )
        with self.timed(trainer, step, phase if known is None else "shared"), bar:
            for place, evaluation_set in enumerate(sets):
                scored.append(score_set(trainer, pl_module, evaluation_set) if known is None else known[place])
                fields, answers = scored[-1]
                answers = [dict(answer) for answer in answers]  # images are named in these; what is shared has none
                if self.keep_predictions and not is_dev_run(trainer):
                    self._keep_images(trainer, answers, evaluation_set)
                    self._keep_answers(trainer, answers, evaluation_set, step, decoding_of(evaluation_set, pl_module))
                self.record(trainer, ScoreEvent(step=step, after=after, **fields))
                bar.update()
        if shared is not None and known is None:
            shared.keep(scored)
        results = RunResults(list(self._events))
        summary = results.summary(step)
        names = {"AP": "average_performance", "BWT": "backward_transfer", "MASR": "mean_attack_success_rate"}
        names |= {"DASR": "attack_success_rise", "over_refusal": "over_refusal"}
        values = {f"evaluation/{label}": summary[key] for key, label in names.items()}
        values |= {
            f"evaluation/{event.set}": event.score
            for event in results.events(ScoreEvent)
            if event.step == step and event.score is not None
        }
        values |= {f"evaluation/{name}_answers": summary[name] for name in COUNTED}
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if step >= 0:
            self._to_log = finite
        else:
            log_metrics(trainer, finite, trainer.global_step)
        shown = ", ".join(f"{key} {100 * summary[key]:.1f} %" for key in names if math.isfinite(summary[key]))
        shown += "".join(
            f", {name.replace('_', ' ')} answers {100 * summary[name]:.1f} %" for name in COUNTED if summary[name] > 0
        )
        rank_zero_info(f"{'Aligned model' if after is None else f'After {after}'}: {shown}")
        self._warn_about_empty(step, after)

    def mostly_empty(self, step: int) -> dict[str, str]:
        """Sets most of whose answers are empty after task ``step`` (-1: the aligned model) -> ``"9 of 10"``.

        The sets of tasks that are not taught yet are left out.
        """
        return RunResults(list(self._events)).mostly_empty(step)

    def _warn_about_empty(self, step: int, after: str | None) -> None:
        """A judge may take an empty answer for a refusal; a model that says nothing is broken, not safe."""
        if empty := self.mostly_empty(step):
            who = "The aligned model" if after is None else f"The model after {after}"
            rank_zero_warn(broken_not_safe(who, listed(empty)))

    def _keep_images(self, trainer: L.Trainer, answers: list[dict[str, Any]], evaluation_set: EvaluationSet) -> None:
        """Write small copies of the set's images once, and name them in the answers."""
        folder = results_directory(trainer) / PREDICTIONS
        if not trainer.is_global_zero:
            return
        records = records_of(evaluation_data(trainer, "TaskEvaluation").evaluation_dataloader(evaluation_set))
        if records is None or len(records) != len(answers) or not all(isinstance(one, Record) for one in records):
            return
        for index, (record, answer) in enumerate(zip(records, answers, strict=True)):
            answer["images"] = []
            for number, image in enumerate(record.images):
                name = f"images/{evaluation_set.name}/{index:05d}_{number}.jpg"
                answer["images"].append(name)
                if not (folder / name).is_file():
                    small = open_image(image, record.where, max_pixels=None)
                    small = small.copy() if small is image else small
                    small.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
                    with whole_file(folder / name) as beside:
                        small.save(beside, "JPEG", quality=85)

    def _keep_answers(
        self,
        trainer: L.Trainer,
        answers: list[dict[str, Any]],
        evaluation_set: EvaluationSet,
        step: int,
        decoding: dict[str, Any],
    ) -> None:
        path = prediction_file(results_directory(trainer), step, evaluation_set.name)
        if not trainer.is_global_zero:
            return
        write_rows(path, ({**answer, "decoding": decoding} for answer in answers))

    def _record_run(self, trainer: L.Trainer) -> None:
        data = evaluation_data(trainer, "TaskEvaluation")
        own = [
            type(callback).__name__
            for callback in callbacks_of(trainer)
            if isinstance(callback, TaskCallback) and not isinstance(callback, (SequentialTuning, TaskEvaluation))
        ]
        self.record(
            trainer,
            RunEvent(
                method=self.method or " + ".join(own) or "Sequential tuning",
                seed=int(os.environ.get("PL_GLOBAL_SEED", "-1")),
                tasks=tuple(task.name for task in data.tasks),
                sets=tuple({"name": item.name, "kind": item.kind} for item in data.evaluation_sets()),
                data=masked_values(provenance_of(data)),
                ends=True,
                **run_origin(trainer.strategy.root_device, precision_of(trainer)),
            ),
        )


def score_set(trainer: L.Trainer, pl_module: L.LightningModule, evaluation_set: EvaluationSet) -> ScoredSet:
    """Let the model answer one evaluation set, outside Lightning's loops, and score the answers by the set's metric.

    Several processes share the batches; the metric and the answers are combined, and every process returns the same.

    Args:
        trainer: its datamodule gives the batches.
        pl_module: the model, see :mod:`hpa_lightning.answering`.
        evaluation_set: one of the datamodule's ``evaluation_sets()``.

    Returns:
        What a score event holds, and for every sample, in the order of the set, ``{"id", "prompt", "question",
        "response", "references"}`` with what `score_batch` or `score_choices` tells of it. The prompt is what the
        model read, the question the text of the last user turn.
    """
    data, sharded = evaluation_data(trainer, "score_set"), is_sharded(pl_module)
    scoring = SetScoring(evaluation_set, data, pl_module, trainer, together=sharded)
    with evaluation_mode(pl_module), forward_context(trainer):
        if not scoring.chooses:
            loader = data.evaluation_dataloader(evaluation_set)
            shared = (
                in_lockstep(loader, trainer, pl_module.device) if sharded else counted(local_share(loader, trainer))
            )
            for batch, counts in shared:
                scoring.answer(to_device(trainer, batch), counts)
        scoring.choose()
    return scoring.finish()
