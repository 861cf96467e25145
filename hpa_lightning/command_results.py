"""What `validate`, `test` and `predict` print and write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hpa_lightning.data.needs import has_own_predict_data, predicted_sets
from hpa_lightning.decoding import decoding_of
from hpa_lightning.evaluation import ScoredSet, interleaved, means
from hpa_lightning.metrics.scoring import broken_not_safe, listed, mostly_empty
from hpa_lightning.modules.emulated_bfloat16 import precision_of
from hpa_lightning.redaction import masked_text
from hpa_lightning.report.category_tables import further_text
from hpa_lightning.report.run_tables import ANSWER_COLUMNS
from hpa_lightning.results.events import EndEvent, ScoreEvent, TestedEvent
from hpa_lightning.results.predictions import prediction_file, write_rows
from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter
from hpa_lightning.results.run_results import COUNTED, run_origin
from hpa_lightning.table import Table
from hpa_lightning.trainer_attributes import datamodule_of

ANSWERS = "answers.jsonl"


class CommandResults(L.Callback):
    """Writes and prints what `validate`, `test` or `predict` found.

    `validate` and `test`: ``results.jsonl`` and ``predictions/``, as a run has them, so that ``hpa-lightning report``,
    ``judge`` and ``answers`` read them; one table of all scores, and their means. `predict`: ``answers.jsonl``, one
    object for each record. All say first whose weights these are, and note it (``weights``) in what they write.

    Hooks: ``on_validation_start``, ``on_validation_end``, ``on_test_start``, ``on_test_end``, ``on_predict_start``,
    ``on_predict_batch_end``, ``on_predict_end``. State: none.

    Args:
        command: its name.
        folder: to write to.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command, self.folder = command, folder
        self._answers: dict[int, list[Any]] = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_weights(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_weights(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_weights(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._scores(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._scores(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._answers.setdefault(dataloader_idx, []).extend(outputs if isinstance(outputs, list) else [outputs])

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = datamodule_of(trainer)
        sets, own_data = predicted_sets(datamodule), has_own_predict_data(datamodule)
        tell: Any = getattr(pl_module, "decoding", None)
        rows = []
        loaders: Any = trainer.num_predict_batches
        for index in range(len(loaders)):  # on every process, also on one that had no sample of a small set
            found = interleaved(self._answers.get(index, []), trainer.world_size)
            if not all(isinstance(row, dict) for row in found):
                rank_zero_warn(
                    f"predict_step of {type(pl_module).__name__} returns no list of dicts, so {ANSWERS} is not "
                    "written; use a BasePredictionWriter of your own."
                )
                return
            of = {"set": "predict_data"} if own_data else {"set": sets[index].name} if index < len(sets) else {}
            decoding = {}
            if callable(tell):
                decoding = {"decoding": decoding_of(sets[index], pl_module) if index < len(sets) else tell()}
            rows += [{**of, **row, **decoding, "weights": _weights(trainer)} for row in found]
        if trainer.is_global_zero:
            write_rows(self.folder / ANSWERS, rows)
            cut = sum(row.get("cut") is True for row in rows)
            print(f"{len(rows)} answers, {cut} of them cut by the limit on new tokens: {self.folder / ANSWERS}")

    def _report_weights(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            print(f"{self.command} takes {_weights(trainer)}.")

    def _scores(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scored: list[ScoredSet] = getattr(pl_module, "scored", [])
        if not scored:
            rank_zero_info(f"{type(pl_module).__name__} keeps no scores for {RESULT_FILE}; see the logger's files.")
            return
        if not trainer.is_global_zero:
            return
        writer = ResultWriter(self.folder / RESULT_FILE)
        checkpoint = None if trainer.ckpt_path is None else masked_text(str(trainer.ckpt_path))
        sets = [{"name": fields["set"], "kind": fields["kind"]} for fields, _ in scored]
        run = TestedEvent(
            method=f"{self.command} of {checkpoint or 'the model as configured'}",
            tested=checkpoint,
            weights=_weights(trainer),
            tasks=tuple(item["name"] for item in sets if item["kind"] == "task"),
            sets=tuple(sets),
            ends=True,
            **run_origin(trainer.strategy.root_device, precision_of(trainer)),
        )
        writer.write(run)
        for fields, rows in scored:
            writer.write(ScoreEvent(step=-1, after=None, **fields))
            decoding = {"decoding": fields["decoding"]} if "decoding" in fields else {}
            write_rows(prediction_file(self.folder, -1, fields["set"]), ({**row, **decoding} for row in rows))
        writer.write(EndEvent(finished_tasks=0, tasks=len(run.tasks)))
        print(score_text(scored))
        print(f"Scores and answers: {self.folder}")


def score_text(scored: Sequence[ScoredSet]) -> str:
    """Every score once, in percent of its range, and the means; a warning where most answers to a set are empty."""
    rows: list[list[Any]] = []
    for fields, _ in scored:
        shares = [f"{100 * fields[key] / fields['n']:.1f}" if key in fields else "–" for key in COUNTED]
        rows.append([fields["set"], fields["kind"], fields["metric"], 100 * fields["score"], fields["n"], *shares])
    table = Table(["Set", "Kind", "Metric", "%", "n", *(heading for _, heading, _ in ANSWER_COLUMNS)], rows).text()
    titles = {"average_performance": "AP", "mean_attack_success_rate": "MASR", "over_refusal": "over-refusal"}
    titles["helpfulness"] = "helpfulness"
    figures = ", ".join(f"{titles[name]} {100 * value:.2f} %" for name, value in means(scored).items())
    empty = mostly_empty({fields["set"]: fields for fields, _ in scored})
    figures += "".join(f"\n{reported}" for fields, _ in scored if (reported := further_text(fields)))
    warning = f"\nWarning: {broken_not_safe('The model', listed(empty))}" if empty else ""
    return f"{table}\n{figures}{warning}"


def _weights(trainer: L.Trainer) -> str:
    """Say whose weights the trainer has loaded."""
    if trainer.ckpt_path is None:
        return "the model as configured, no checkpoint was given"
    return f"the checkpoint {masked_text(str(trainer.ckpt_path))}"  # an address may hold credentials
