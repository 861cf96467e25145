"""Task scorers (exact match, token F1) and the registry of evaluation metrics.

Every metric of the registry is updated the same way, `metric.update(predictions, references)`, with one
prediction and one tuple of accepted references per record, so that an evaluation loop needs no special case.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from hpa_lightning.metrics.safety import AttackSuccessRate, OverRefusalRate

References = Sequence[Sequence[str]]
_SENTENCE_END = ".,;:!? "
_TOKEN_EDGE = ".,;:!?\"'()[]{}\u2018\u2019\u201c\u201d"


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, no trailing punctuation.

    Example:
        >>> normalise_answer("  A  Red cube .")
        'a red cube'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_SENTENCE_END)


def _tokens(text: str) -> list[str]:
    stripped = (token.strip(_TOKEN_EDGE) for token in normalise_answer(text).split())
    return [token for token in stripped if token]


def _matches(prediction: str, reference: str) -> float:
    answer = normalise_answer(prediction)
    return float(bool(answer) and answer == normalise_answer(reference))


def _f1(prediction: str, reference: str) -> float:
    predicted, expected = Counter(_tokens(prediction)), Counter(_tokens(reference))
    common = (predicted & expected).total()
    return 2 * common / (predicted.total() + expected.total()) if common else 0.0


def _sum_of_best(predictions: Sequence[str], references: References, score: Callable[[str, str], float]) -> float:
    if isinstance(predictions, str):
        raise ValueError("Expected a sequence of predictions, got a single string; wrap it in a list.")
    if len(predictions) != len(references):
        raise ValueError(
            f"Got {len(predictions)} predictions and {len(references)} references; "
            "expected one tuple of accepted references per prediction."
        )
    total = 0.0
    for index, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(accepted, str) or not accepted:
            raise ValueError(
                f"The references of prediction {index} must be a tuple of accepted answers, got {accepted!r}."
            )
        total += max(score(prediction, reference) for reference in accepted)
    return total


def _mean(total: Tensor, count: Tensor, name: str) -> Tensor:
    if count == 0:
        rank_zero_warn(f"{name} has seen no prediction, so its value is NaN.", UserWarning)
    return total / count


def exact_match(predictions: Sequence[str], references: References) -> Tensor:
    """Share of predictions equal to one of their references, up to case, spaces and trailing punctuation.

    Decision: an empty prediction is never correct, and no substring counts (scorers that accept substrings in
    either direction score an empty prediction as correct).

    Args:
        predictions: one text per record.
        references: accepted answers of each record, at least one.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> exact_match(["Red .", "", "a blue cube"], [("red",), ("green",), ("blue",)])
        tensor(0.3333)
    """
    total = _sum_of_best(predictions, references, _matches)
    return _mean(torch.tensor(total), torch.tensor(len(predictions)), "The exact match")


def token_f1(predictions: Sequence[str], references: References) -> Tensor:
    """Mean F1 of the words shared with the best of the references (with repetition), as SQuAD scores answers.

    Words are separated by spaces, in lower case, without punctuation at their edges. Decision: articles
    count.

    Args:
        predictions: one text per record.
        references: accepted answers of each record, at least one.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> token_f1(["a dog , running"], [("a dog", "cat")])
        tensor(0.8000)
    """
    total = _sum_of_best(predictions, references, _f1)
    return _mean(torch.tensor(total), torch.tensor(len(predictions)), "The token F1")


class ExactMatch(Metric):
    """Share of predictions equal to one of their references; see `exact_match`.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update(["Red .", ""], [("red",), ("green",)])
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    correct: Tensor
    total: Tensor
    _score: Callable[[str, str], float] = staticmethod(_matches)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: References) -> None:
        """Adds predictions, each with its tuple of accepted references."""
        self.correct += _sum_of_best(predictions, references, self._score)
        self.total += len(predictions)

    def compute(self) -> Tensor:
        """The mean over all predictions; NaN with a warning if there were none."""
        return _mean(self.correct, self.total, type(self).__name__)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots one value or several; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class TokenF1(ExactMatch):
    """Mean F1 of the words shared with the best of the references; see `token_f1`.

    Example:
        >>> metric = TokenF1()
        >>> metric.update(["a dog"], [("a black dog",)])
        >>> metric.compute()
        tensor(0.8000)
    """

    _score = staticmethod(_f1)


#: Evaluation metrics by the name that tasks and result files use.
METRICS: dict[str, type[Metric]] = {
    "exact_match": ExactMatch,
    "token_f1": TokenF1,
    "attack_success_rate": AttackSuccessRate,
    "over_refusal_rate": OverRefusalRate,
}


def build_metric(name: str, **kwargs: Any) -> Metric:
    """Builds the evaluation metric of that name.

    Args:
        name: a key of `METRICS`.
        kwargs: arguments of its class, such as `judge`.

    Raises:
        ValueError: if there is no metric of that name.

    Example:
        >>> build_metric("attack_success_rate", judge="vlguard").judge
        StringRefusalJudge('vlguard')
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}: expected one of {', '.join(METRICS)}.")
    return METRICS[name](**kwargs)
