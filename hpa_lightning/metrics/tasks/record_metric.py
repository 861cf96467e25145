"""What all task scorers share: one score per record, and its mean as a function and as a torchmetrics class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from hpa_lightning.metrics.judges.judged_text import given_answer

References = Sequence[Sequence[str]]
#: Scores one prediction against all of its accepted references.
RecordScore = Callable[[str, Sequence[str]], float]


def check_records(predictions: Sequence[str], references: References) -> None:
    """Refuses what is not one prediction and one non-empty tuple of references for each record.

    Raises:
        ValueError: if the two differ in length, or a record has no reference, or a string stands for a sequence.
    """
    if isinstance(predictions, str):
        raise ValueError("Expected a sequence of predictions, got a single string; wrap it in a list.")
    if len(predictions) != len(references):
        raise ValueError(
            f"Got {len(predictions)} predictions and {len(references)} references; "
            "expected one tuple of accepted references per prediction."
        )
    for index, accepted in enumerate(references):
        if isinstance(accepted, str) or not accepted:
            raise ValueError(
                f"The references of prediction {index} must be a tuple of accepted answers, got {accepted!r}."
            )


def best_of(score: Callable[[str, str], float]) -> RecordScore:
    """The score against the best of the references."""

    def best(prediction: str, accepted: Sequence[str]) -> float:
        return max(score(prediction, reference) for reference in accepted)

    return best


def scores_of(predictions: Sequence[str], references: References, score: RecordScore) -> list[float]:
    """Every record's score, without the thoughts before an answer; an error of a single record has its index."""
    check_records(predictions, references)
    scores = []
    for index, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        try:
            scores.append(score(given_answer(prediction), accepted))
        except ValueError as error:
            raise ValueError(f"Prediction {index} cannot be scored: {error}") from error
    return scores


def mean_or_nan(total: Tensor, count: Tensor, name: str) -> Tensor:
    """`total / count`; NaN with a warning if nothing was counted."""
    if count == 0:
        rank_zero_warn(f"{name} has seen no prediction, so its value is NaN.", UserWarning)
    return total / count


def mean_score(predictions: Sequence[str], references: References, score: RecordScore, name: str) -> Tensor:
    """The mean of the records' scores, a scalar tensor; NaN with a warning without records."""
    total = sum(scores_of(predictions, references, score))
    return mean_or_nan(torch.tensor(float(total)), torch.tensor(len(predictions)), name)


class Mean(Metric):
    """Base of the metrics that are a mean in [0, 1] over records: the sum of what counts as correct, and the number."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, scores: Sequence[float]) -> None:
        """Adds records by their scores."""
        self.correct += sum(scores)
        self.total += len(scores)

    def compute(self) -> Tensor:
        """The mean over all records; NaN with a warning if there were none."""
        return mean_or_nan(self.correct, self.total, type(self).__name__)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots one value or several; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class MeanScore(Mean):
    """Base of the metrics that are the mean of a score in [0, 1] of each prediction; subclasses define `score`."""

    @staticmethod
    @abstractmethod
    def score(prediction: str, accepted: Sequence[str], /) -> float:
        """The score of one prediction against all of its references."""

    def scores(self, predictions: Sequence[str], references: References) -> list[float]:
        """The score of every prediction against its tuple of accepted references; adds nothing."""
        return scores_of(predictions, references, self.score)

    def update(self, predictions: Sequence[str], references: References, scores: Sequence[float] | None = None) -> None:
        """Adds predictions, each with its tuple of accepted references; `scores` that are known already are taken."""
        if scores is None:
            scores = self.scores(predictions, references)
        if len(scores) != len(predictions):
            raise ValueError(f"There are {len(scores)} scores of {len(predictions)} predictions.")
        self._add(scores)
