"""Scores over groups of records: circular evaluation of multiple choice, and accuracy and accuracy+ of MME."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from hpa_lightning.metrics.tasks.choice_accuracy import likeliest
from hpa_lightning.metrics.tasks.options import OptionAccuracy
from hpa_lightning.metrics.tasks.record_metric import References, scores_of

#: The scheme of :attr:`hpa_lightning.data.Record.categories` that holds MME's subtasks.
SUBTASK = "subtask"

_POINTS = 100.0  # MME counts each rate in points of 100


def yes_or_no(prediction: str) -> str | None:
    """What MME's own script reads in an answer: ``"yes"``, ``"no"``, or ``None`` for neither.

    The first four characters count, in lower case: ``yes`` in them, else ``no`` in them. So "Not sure" is a no and
    "It is" is neither; the rule is kept as it is published, since scores are compared.

    Source: ``eval_tool/calculation.py`` of MME (Fu et al., arXiv 2306.13394).

    >>> [yes_or_no(text) for text in ("Yes, it is.", "no", "Not sure", "It is red.", "")]
    ['yes', 'no', 'no', None, None]
    """
    start = prediction.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def _yes_no(prediction: str, accepted: Sequence[str]) -> float:
    wanted = {answer.strip().lower() for answer in accepted}
    if len(wanted) != 1 or not wanted <= {"yes", "no"}:
        raise ValueError(f"the answer is {sorted(wanted)}; expected yes or no.")
    return float(yes_or_no(prediction) in wanted)


def circular_figures(groups: Sequence[str], correct: Sequence[float], first: Sequence[bool]) -> dict[str, float]:
    """The figures of circular evaluation.

    Args:
        groups: the question of every row.
        correct: whether the row was answered rightly, 0 or 1.
        first: whether the row is the question as it was first written, not a rotation.

    Returns:
        ``"score"``: share of questions of which all rows are right (CircularEval); ``"vanilla"``: share of the first
        rows that are (VanillaEval), where there are any; ``"accuracy"``: share of all rows.

    >>> circular_figures(["a", "a", "b"], [1, 0, 1], [True, False, True])
    {'score': 0.5, 'vanilla': 1.0, 'accuracy': 0.6666666666666666}
    """
    whole: dict[str, bool] = {}
    for group, one in zip(groups, correct, strict=True):
        whole[group] = whole.get(group, True) and one == 1
    found = {"score": sum(whole.values()) / len(whole)}
    if firsts := [one for one, is_first in zip(correct, first, strict=True) if is_first]:
        found["vanilla"] = sum(firsts) / len(firsts)
    return found | {"accuracy": sum(correct) / len(correct)}


def mme_figures(subtasks: Sequence[str], groups: Sequence[str], correct: Sequence[float]) -> dict[str, float]:
    """The figures of MME.

    Args:
        subtasks, groups: subtask and image of every question.
        correct: whether it was answered rightly, 0 or 1.

    Returns:
        ``"score"``: the points as a fraction of the most that there are (200 for a subtask); ``"accuracy"`` and
        ``"accuracy_plus"``, means over the subtasks of the share of questions and of the share of images whose
        questions are all right; ``"points"``, as the benchmark sums them: 100 times accuracy and accuracy+ over the
        subtasks.

    >>> mme_figures(["count"] * 4, ["1", "1", "2", "2"], [1, 1, 1, 0])
    {'score': 0.625, 'accuracy': 0.75, 'accuracy_plus': 0.5, 'points': 125.0}
    """
    rows: dict[str, list[tuple[str, float]]] = {}
    for subtask, group, one in zip(subtasks, groups, correct, strict=True):
        rows.setdefault(subtask, []).append((group, one))
    accuracy, plus = 0.0, 0.0
    for found in rows.values():
        accuracy += sum(one for _, one in found) / len(found)
        plus += circular_figures([group for group, _ in found], [one for _, one in found], [False] * len(found))[
            "score"
        ]
    return {
        "score": (accuracy + plus) / (2 * len(rows)),
        "accuracy": accuracy / len(rows),
        "accuracy_plus": plus / len(rows),
        "points": _POINTS * (accuracy + plus),
    }


class GroupedMetric(Metric):
    """Base of the metrics that look at several records together, on whichever process each of them was answered.

    State: of every record the hash of its subtask, the hash of its group and whether it is right, one behind the other,
    int64.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    rows: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rows", [], dist_reduce_fx="cat")

    @staticmethod
    @abstractmethod
    def score(prediction: str, accepted: Sequence[str], /) -> float:
        """Whether one prediction is right, 0 or 1."""

    @staticmethod
    @abstractmethod
    def figures(
        subtasks: Sequence[str], groups: Sequence[str], correct: Sequence[float], first: Sequence[bool]
    ) -> dict[str, float]:
        """All figures of some records, ``"score"`` among them."""

    def scores(self, predictions: Sequence[str], references: References) -> list[float]:
        """The score of every prediction against its tuple of accepted references; adds nothing."""
        return scores_of(predictions, references, self.score)

    def update(
        self,
        predictions: Sequence[str],
        references: References,
        groups: Sequence[str],
        subtasks: Sequence[str] | None = None,
        scores: Sequence[float] | None = None,
    ) -> None:
        """Adds predictions, each with its accepted references and its group; `scores` known already are taken."""
        self._add(self.scores(predictions, references) if scores is None else scores, groups, subtasks)

    def _add(self, scores: Sequence[float], groups: Sequence[str], subtasks: Sequence[str] | None) -> None:
        subtasks = [""] * len(groups) if subtasks is None else subtasks
        if not len(scores) == len(groups) == len(subtasks):
            raise ValueError(f"There are {len(groups)} groups and {len(subtasks)} subtasks of {len(scores)} records.")
        if not all(groups):
            raise ValueError(
                f"{type(self).__name__} scores records that belong together, and {list(groups).count('')} of "
                f"{len(groups)} have no group; expected records of a set that has them, such as MMBench or MME."
            )
        rows = [
            [_key(subtask), _key(f"{subtask}\0{group}"), int(score)]
            for subtask, group, score in zip(subtasks, groups, scores, strict=True)
        ]
        found = torch.tensor(rows, dtype=torch.int64, device=self.device).flatten()
        self.rows.append(found)  # type: ignore[union-attr]

    def compute(self) -> Tensor:
        """The score over all records; NaN with a warning if there were none."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, dtype=torch.int64)
        if not len(rows):
            rank_zero_warn(f"{type(self).__name__} has seen no prediction, so its value is NaN.", UserWarning)
            return torch.tensor(float("nan"), device=self.device)
        subtasks, groups, correct = rows.reshape(-1, 3).T.tolist()
        found = self.figures(
            [str(one) for one in subtasks], [str(one) for one in groups], correct, [False] * len(groups)
        )
        return torch.tensor(found["score"], device=self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        if not len(self.rows):  # every process must gather a tensor of the same type, those without a record too
            self.rows = [torch.empty(0, dtype=torch.int64, device=self.device)]
        super()._sync_dist(dist_sync_fn, process_group)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots one value or several; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class CircularAccuracy(GroupedMetric):
    """Share of questions of multiple choice that are right in every rotation of their options (CircularEval).

    A row is right if the prediction names the right option and no other, see
    :func:`~hpa_lightning.metrics.tasks.options.option_accuracy`.

    Source: Liu et al., "MMBench", ECCV 2024 (arXiv 2307.06281).

    Example:
        >>> metric = CircularAccuracy()
        >>> metric.update(["A", "B", "B", "B"], [("A",), ("B",), ("B",), ("A",)], groups=["7", "7", "9", "9"])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(OptionAccuracy.score)

    @staticmethod
    def figures(
        subtasks: Sequence[str], groups: Sequence[str], correct: Sequence[float], first: Sequence[bool]
    ) -> dict[str, float]:
        """See :func:`circular_figures`."""
        return circular_figures(groups, correct, first)


class MMEScore(GroupedMetric):
    """Points of MME as a fraction of the most that there are; see :func:`mme_figures` and :func:`yes_or_no`.

    Source: Fu et al., "MME", arXiv 2306.13394.

    Example:
        >>> metric = MMEScore()
        >>> answers, wanted = ["Yes.", "No", "yes", "yes"], [("Yes",), ("No",), ("Yes",), ("No",)]
        >>> metric.update(answers, wanted, groups=["1.jpg", "1.jpg", "2.jpg", "2.jpg"], subtasks=["count"] * 4)
        >>> metric.compute()
        tensor(0.6250)
    """

    score = staticmethod(_yes_no)

    @staticmethod
    def figures(
        subtasks: Sequence[str], groups: Sequence[str], correct: Sequence[float], first: Sequence[bool]
    ) -> dict[str, float]:
        """See :func:`mme_figures`."""
        return mme_figures(subtasks, groups, correct)


class GroupedChoiceMetric(GroupedMetric):
    """The same by the likelihoods of the choices."""

    def update(  # type: ignore[override]
        self,
        scores: Sequence[Sequence[float]],
        right: Sequence[int],
        groups: Sequence[str],
        subtasks: Sequence[str] | None = None,
    ) -> None:
        """Adds questions: log-likelihoods of the choices, the place of the right one, the group."""
        for one, place in zip(scores, right, strict=True):
            if not 0 <= place < len(one):
                raise ValueError(f"The right choice is number {place}, and there are {len(one)} choices.")
        correct = [float(likeliest(one) == place) for one, place in zip(scores, right, strict=True)]
        self._add(correct, groups, subtasks)


class CircularChoiceAccuracy(GroupedChoiceMetric, CircularAccuracy):
    """`CircularAccuracy` where the likeliest choice is the answer.

    Example:
        >>> metric = CircularChoiceAccuracy()
        >>> metric.update([[-2.0, -0.5], [-0.1, -3.0]], [1, 1], groups=["7", "9"])
        >>> metric.compute()
        tensor(0.5000)
    """


class MMEChoiceScore(GroupedChoiceMetric, MMEScore):
    """`MMEScore` where the likelier of yes and no is the answer.

    Example:
        >>> metric = MMEChoiceScore()
        >>> metric.update([[-2.0, -0.5], [-0.1, -3.0]], [1, 1], groups=["1.jpg", "1.jpg"], subtasks=["count"] * 2)
        >>> metric.compute()
        tensor(0.2500)
    """


def _key(text: str) -> int:
    """A hash that is the same in every process, int64."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def subtasks_of(categories: Sequence[Mapping[str, str]]) -> list[str]:
    """The subtask of every record, ``""`` where it has none."""
    return [one.get(SUBTASK, "") for one in categories]
