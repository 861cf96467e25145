"""Scoring evaluation sets inside Lightning's validation and test loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch

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
from hpa_lightning.modules.sharding import is_sharded


def predicted_sets(datamodule: Any) -> list[Any]:
    """The evaluation sets that ``predict`` answers, one for each of its loaders; none where it has other data."""
    if getattr(datamodule, "predict_data", None) is not None or not hasattr(datamodule, "evaluation_sets"):
        return []
    return list(datamodule.evaluation_sets())


class ScoredSet(NamedTuple):
    """A set's score event (without a step) and its answers in the order of the set."""

    fields: dict[str, Any]
    rows: list[dict[str, Any]]


class SetScoring:
    """The metrics and the answers of the sets that a loop goes through; its loaders are those of ``sets``.

    Args:
        module: an ``MLLMModule`` in a loop.
        of: the datamodule's method that lists the sets.

    Raises:
        ValueError: the datamodule does not have it.
    """

    def __init__(self, module: Any, of: str) -> None:
        self._module, self._datamodule = module, module.trainer.datamodule
        if not hasattr(self._datamodule, of):
            raise ValueError(
                f"validation and test ask the datamodule for its {of}(), which {type(self._datamodule).__name__} does "
                "not have; use a CVITDataModule, or override validation_step and test_step."
            )
        self.sets: list[Any] = getattr(self._datamodule, of)()
        self._metrics: list[Any] = [metric_of(item).to(module.device) for item in self.sets]
        self._rows: list[list[dict[str, Any]]] = [[] for _ in self.sets]

    def answer(self, batch: dict[str, Any], index: int) -> None:
        """Answer a ``generate`` batch of the set ``index`` and update its metric."""
        item = self.sets[index]
        if is_multiple_choice(item):
            return
        limit = decoding_of(item, self._module)["max_new_tokens"]
        answers = self._module.generate(batch, max_new_tokens=limit)
        found = score_batch(self._metrics[index], answers, batch)
        self._rows[index] += answer_rows(batch, answers, found)

    def finish(self) -> list[ScoredSet]:
        """Choose where a set is one of multiple choice, and unite what the processes found; all have to call it."""
        module, data = self._module, self._datamodule
        scored = []
        for item, metric, rows in zip(self.sets, self._metrics, self._rows, strict=True):
            records = data.evaluation_dataloader(item).dataset
            together = is_multiple_choice(item) and is_sharded(module.model)  # all processes score all questions
            if is_multiple_choice(item):
                sharing = (0, 1) if together else (module.global_rank, module.trainer.world_size)
                choose = lambda share: module.choose(share, data.collator, data.eval_batch_size)  # noqa: E731
                rows = score_choices(metric, list(records), choose, *sharing)
            rows = rows if together else united(rows, module.trainer.world_size)
            fields = score_fields(item, float(metric.compute()), rows[: len(records)], decoding_of(item, module))
            scored.append(ScoredSet(fields, rows[: len(records)]))
        return scored


def means(scored: Sequence[ScoredSet]) -> dict[str, float]:
    """Return the figures over the sets that were scored, fractions, by the names that ``TaskEvaluation`` logs.

    ``average_performance`` over the tasks, ``mean_attack_success_rate``, ``over_refusal`` and ``helpfulness``: what
    there are sets of.
    """
    by_kind: dict[str, dict[str, float]] = {}
    for fields, _ in scored:
        by_kind.setdefault(fields["kind"], {})[fields["set"]] = fields["score"]
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


def united(rows: list[Any], world_size: int) -> list[Any]:
    """Put the processes' rows into the order of the set: every process has each ``world_size``-th sample."""
    if world_size == 1:
        return rows
    shares: list[list[Any]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, rows)
    return [row for row in chain.from_iterable(zip_longest(*shares)) if row is not None]
