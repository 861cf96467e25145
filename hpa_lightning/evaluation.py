"""Scoring an evaluation set: the same for ``TaskEvaluation``, ``SafetyGate`` and Lightning's loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeVar

import lightning as L
import torch
from torchmetrics import Metric

from hpa_lightning.answering import choosing_module, opening_module, scored_module
from hpa_lightning.data.needs import choice_data, opening_collator, records_of
from hpa_lightning.data.protocols import EvaluationData
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.decoding import decoding_of
from hpa_lightning.metrics import average_performance, mean_attack_success_rate, mean_over_refusal_rate
from hpa_lightning.metrics.scoring import (
    answer_rows,
    is_multiple_choice,
    metric_of,
    score_batch,
    score_choices,
    score_fields,
)

T = TypeVar("T")


class ScoredSet(NamedTuple):
    """A set's score event (without a step) and its answers in the order of the set."""

    fields: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def score(self) -> float:
        """By the set's metric, a fraction."""
        return float(self.fields["score"])


def check_scoring(data: EvaluationData, pl_module: L.LightningModule, caller: str) -> None:
    """Check before a fit that a module and data have what scoring their sets needs.

    Raises:
        MisconfigurationException: the module cannot answer, or one of them lacks what multiple choice or openings need.
    """
    scored_module(pl_module, caller)
    sets = data.evaluation_sets()
    if any(is_multiple_choice(item) for item in sets):
        choosing_module(pl_module, caller)
        choice_data(data, caller)
    if any(item.openings is not None for item in sets):
        opening_module(pl_module, caller)
        choice_data(data, caller)


class SetScoring:
    """One evaluation set while a model answers it.

    Several processes share the set; all make the same calls, and :meth:`finish` unites what they found. The order of
    calls: :meth:`answer` for every batch (of a set of multiple choice they are not looked at), :meth:`choose` once,
    :meth:`finish`. A set with ``openings`` is answered, and :meth:`choose` asks how likely they are.

    Args:
        evaluation_set: what is answered.
        data: the datamodule that it is from.
        pl_module: the model.
        trainer: whose processes share the set.
        together: a sharded model, which needs all processes in every forward pass.

    Raises:
        MisconfigurationException: the module cannot answer, or for multiple choice not choose; or it or the data lack
            what openings need.
    """

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        data: EvaluationData,
        pl_module: L.LightningModule,
        trainer: L.Trainer,
        together: bool,
    ) -> None:
        self.evaluation_set = evaluation_set
        self.chooses = is_multiple_choice(evaluation_set)
        self._data, self._trainer, self._together = data, trainer, together
        self._caller = f"evaluation set {evaluation_set.name!r}"
        self._module = None if self.chooses else scored_module(pl_module, self._caller)
        self._chooser = choosing_module(pl_module, self._caller) if self.chooses else None
        self._opener = None if evaluation_set.openings is None else opening_module(pl_module, self._caller)
        self._openings_of = None if evaluation_set.openings is None else opening_collator(data, self._caller)
        self._metric: Metric = metric_of(evaluation_set).to(pl_module.device)
        self._decoding = decoding_of(evaluation_set, pl_module)
        self._rows: list[list[dict[str, Any]]] = []  # of each batch, or of each record that was chosen for
        self._openings: list[list[float]] = []  # of each record: log-likelihoods of the openings

    def answer(self, batch: dict[str, Any], counts: bool = True) -> None:
        """Answer a ``generate`` batch and update the metric; nothing of a set of multiple choice.

        Args:
            batch: on the module's device.
            counts: otherwise it only keeps processes in step.
        """
        if self._module is None:
            return
        answers = self._module.generate(batch, max_new_tokens=self._decoding["max_new_tokens"])
        if counts:
            found = score_batch(self._metric, answers, batch)
            self._rows.append(answer_rows(batch, answers, found))

    def choose(self) -> None:
        """Choose by likelihood in every record of a set of multiple choice; of one with openings, ask for theirs."""
        module, opener, openings = self._chooser, self._opener, self.evaluation_set.openings
        if module is None and opener is None:
            return
        data, records = choice_data(self._data, self._caller), self._records()
        if records is None:
            raise ValueError(
                f"{self._caller}: its loader has no dataset of records, which multiple choice and openings go through."
            )
        part = (0, 1) if self._together else (self._trainer.global_rank, self._trainer.world_size)
        if opener is not None and openings is not None and self._openings_of is not None:
            asked = list(records)[part[0] :: part[1]]
            found = opener.opening_likelihoods(asked, openings.refusals, self._openings_of, data.eval_batch_size)
            self._openings = [list(likelihoods) for likelihoods in found]
        if module is None:
            return
        rows = score_choices(
            self._metric,
            list(records),
            lambda share: module.choose(share, data.collator, data.eval_batch_size),
            *part,
        )
        self._rows = [[row] for row in rows]

    def finish(self, by_sample: bool = False) -> ScoredSet:
        """Return the score and the answers of all processes, the same on every one.

        Args:
            by_sample: the processes took turns at samples, as Lightning's loops deal them, some perhaps twice; if not,
                at batches.
        """
        rows = [[row] for batch in self._rows for row in batch] if by_sample else self._rows
        if not (self.chooses and self._together):
            rows = interleaved(rows, self._trainer.world_size)
        answers = list(chain.from_iterable(rows))
        if by_sample and (records := self._records()) is not None:
            answers = answers[: len(records)]
        if self.evaluation_set.openings is not None:
            openings = self._openings if self._together else interleaved(self._openings, self._trainer.world_size)
            for row, found in zip(answers, openings, strict=False):  # a limited test answers the first ones only
                row["openings"] = found
        score = float(self._metric.compute())
        return ScoredSet(score_fields(self.evaluation_set, score, answers, self._decoding), answers)

    def _records(self) -> Sequence[Record] | None:
        return records_of(self._data.evaluation_dataloader(self.evaluation_set))


def means(scored: Sequence[ScoredSet]) -> dict[str, float]:
    """Return the figures over the sets that were scored, fractions, by the names that ``TaskEvaluation`` logs.

    ``average_performance`` over the tasks, ``mean_attack_success_rate``, ``over_refusal`` and ``helpfulness``: what
    there are sets of.
    """
    by_kind: dict[str, dict[str, float]] = {}
    for one in scored:
        by_kind.setdefault(one.fields["kind"], {})[one.fields["set"]] = one.score
    found: dict[str, Any] = {}
    if tasks := by_kind.get("task"):
        row = torch.tensor(list(tasks.values()), dtype=torch.float64)
        found["average_performance"] = average_performance(row.repeat(len(row), 1), len(row) - 1)
    if safety := by_kind.get("safety"):
        found["mean_attack_success_rate"] = mean_attack_success_rate(safety)
    if harmless := by_kind.get("over_refusal"):
        found["over_refusal"] = mean_over_refusal_rate(harmless)
    if helpful := by_kind.get("helpfulness"):
        found["helpfulness"] = sum(helpful.values()) / len(helpful)
    return {name: float(value) for name, value in found.items()}


def interleaved(share: list[T], world_size: int) -> list[T]:
    """Put what the processes hold into one order: every process has each ``world_size``-th item; on every process."""
    if world_size == 1:
        return share
    shares: list[list[T]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, share)
    return [item for turn in zip_longest(*shares) for item in turn if item is not None]
