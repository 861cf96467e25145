"""Continual-learning metrics of the score matrix `R`: average performance, backward transfer, MFT, MFN, MAA.

`R[j, i]` is the score on task `i` after task `j` (both from 0), a fraction in [0, 1], shape `(T, T)`; NaN
means not measured. Every function reads the matrix up to a step: the tasks `0 .. step` count as the whole
sequence, so a sequence in progress is a shorter sequence and not a broken one. A score that the formula needs
and that was not measured makes the result NaN: a mean over fewer tasks would look like a better or worse
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

ScoreMatrix = Tensor | np.ndarray | Sequence[Sequence[float]]


def _upto(matrix: ScoreMatrix, step: int | None) -> Tensor:
    """The square block of the tasks `0 .. step` (default: the last step with any score), floating point."""
    scores = torch.as_tensor(matrix)
    if not scores.is_floating_point():
        scores = scores.to(torch.get_default_dtype())
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] == 0:
        raise ValueError(
            f"The score matrix must have the shape (T, T) with at least one task, got {tuple(scores.shape)}. "
            "Row j holds the scores after task j, column i those on task i; NaN = not measured."
        )
    if step is None:
        measured = (~scores.isnan()).any(dim=1).nonzero()
        step = int(measured[-1]) if len(measured) else 0
    if not 0 <= step < scores.shape[0]:
        raise ValueError(f"step must be in 0 .. {scores.shape[0] - 1} for {scores.shape[0]} tasks, got {step}.")
    return scores[: step + 1, : step + 1]


def average_performance(matrix: ScoreMatrix, step: int | None = None) -> Tensor:
    """Mean score over the tasks learnt so far, after the last of them: `AP = mean_i R[T, i]`.

    Args:
        matrix: scores `R`, shape `(T, T)`, fractions; NaN = not measured.
        step: the step (from 0) to read the matrix at; default the last one with a score.

    Returns:
        A scalar tensor; NaN if a score of that row is missing.

    Raises:
        ValueError: if the matrix is not square or `step` is outside it.

    Example:
        >>> average_performance([[0.8, 0.0], [0.6, 1.0]])
        tensor(0.8000)
    """
    return _upto(matrix, step)[-1].mean()


def backward_transfer(matrix: ScoreMatrix, step: int | None = None) -> Tensor:
    """Mean change of the earlier tasks since each was learnt: `BWT = 1/(T-1) sum_{i<T} (R[T, i] - R[i, i])`.

    Negative values are forgetting. Decision: the sum is divided by `T - 1` (recovered from published tables),
    and with a single task, where nothing can have been forgotten and the mean is over nothing, the result is
    NaN.

    Args:
        matrix: scores `R`, shape `(T, T)`, fractions; NaN = not measured.
        step: the step (from 0) to read the matrix at; default the last one with a score.

    Returns:
        A scalar tensor in [-1, 1]; NaN for one task or if a score is missing.

    Raises:
        ValueError: if the matrix is not square or `step` is outside it.

    Example:
        >>> backward_transfer([[0.75, 0.0], [0.5, 1.0]])
        tensor(-0.2500)
    """
    scores = _upto(matrix, step)
    return (scores[-1] - scores.diagonal())[:-1].mean()


def mean_finetune_accuracy(matrix: ScoreMatrix, step: int | None = None) -> Tensor:
    """Mean score of each task right after it was learnt, `MFT = mean_i R[i, i]` (as MCITlib reports it).

    Args:
        matrix: scores `R`, shape `(T, T)`, fractions; NaN = not measured.
        step: the step (from 0) to read the matrix at; default the last one with a score.

    Raises:
        ValueError: if the matrix is not square or `step` is outside it.

    Example:
        >>> mean_finetune_accuracy([[0.75, 0.0], [0.5, 1.0]])
        tensor(0.8750)
    """
    return _upto(matrix, step).diagonal().mean()


def mean_final_accuracy(matrix: ScoreMatrix, step: int | None = None) -> Tensor:
    """Mean score of all tasks after the last one, `MFN = mean_i R[T, i]`: MCITlib's `average_performance`.

    Args:
        matrix: scores `R`, shape `(T, T)`, fractions; NaN = not measured.
        step: the step (from 0) to read the matrix at; default the last one with a score.

    Raises:
        ValueError: if the matrix is not square or `step` is outside it.

    Example:
        >>> mean_final_accuracy([[0.75, 0.0], [0.5, 1.0]])
        tensor(0.7500)
    """
    return average_performance(matrix, step)


def mean_average_accuracy(matrix: ScoreMatrix, step: int | None = None) -> Tensor:
    """Average performance averaged over the steps, `MAA = mean_j mean_{i<=j} R[j, i]` (MCITlib).

    Args:
        matrix: scores `R`, shape `(T, T)`, fractions; NaN = not measured.
        step: the step (from 0) to read the matrix at; default the last one with a score.

    Raises:
        ValueError: if the matrix is not square or `step` is outside it.

    Example:
        >>> mean_average_accuracy([[0.75, 0.0], [0.5, 1.0]])
        tensor(0.7500)
    """
    scores = _upto(matrix, step)
    return torch.stack([scores[j, : j + 1].mean() for j in range(len(scores))]).mean()


def _last_measured(matrices: Tensor) -> Tensor:
    """Reduces `(world, T, T)` to `(T, T)`: for every cell the last copy that is not NaN."""
    reduced = matrices[0]
    for matrix in matrices[1:]:
        reduced = torch.where(matrix.isnan(), reduced, matrix)
    return reduced


class ContinualMetric(Metric):
    """Base of the metrics that fill the matrix `R` one score at a time.

    Call `update` (not `forward`: the value of a single cell is rarely defined). Across processes, cells are
    combined; every process must hold the score of the whole evaluation set, or only one process may hold it.

    Args:
        num_tasks: number of tasks `T` of the sequence.

    Raises:
        ValueError: if `num_tasks` is below 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_upper_bound: float = 1.0
    matrix: Tensor

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, got {num_tasks}.")
        self.num_tasks = num_tasks
        self.add_state("matrix", torch.full((num_tasks, num_tasks), torch.nan), dist_reduce_fx=_last_measured)

    def update(self, step: int, task: int, score: float | Tensor) -> None:
        """Sets `R[step, task] = score`, a finite number; a repeated cell is overwritten."""
        for name, index in (("step", step), ("task", task)):
            if not 0 <= index < self.num_tasks:
                raise ValueError(
                    f"{name} must be in 0 .. {self.num_tasks - 1} for {self.num_tasks} tasks, got {index}. "
                    "The scores of the aligned model (step -1) are outside the matrix."
                )
        value = torch.as_tensor(score, dtype=self.matrix.dtype, device=self.matrix.device)
        if value.numel() != 1 or not bool(torch.isfinite(value).all()):
            raise ValueError(f"The score of task {task} after task {step} must be one finite number, got {score}.")
        self.matrix[step, task] = value.reshape(())

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots one value or several; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class AveragePerformance(ContinualMetric):
    """Mean score over the tasks learnt so far; see `average_performance`.

    Example:
        >>> metric = AveragePerformance(num_tasks=3)
        >>> for step, task, score in [(0, 0, 0.8), (1, 0, 0.6), (1, 1, 1.0)]:
        ...     metric.update(step, task, score)
        >>> metric.compute()  # after the second of three tasks
        tensor(0.8000)
    """

    plot_lower_bound: float = 0.0

    def compute(self) -> Tensor:
        """The average performance after the last step with a score."""
        return average_performance(self.matrix)


class BackwardTransfer(ContinualMetric):
    """Mean change of the earlier tasks since each was learnt; see `backward_transfer`.

    Example:
        >>> metric = BackwardTransfer(num_tasks=2)
        >>> for step, task, score in [(0, 0, 0.75), (1, 0, 0.5), (1, 1, 1.0)]:
        ...     metric.update(step, task, score)
        >>> metric.compute()
        tensor(-0.2500)
    """

    plot_lower_bound: float = -1.0

    def compute(self) -> Tensor:
        """The backward transfer after the last step with a score; NaN while there is only one task."""
        return backward_transfer(self.matrix)


class MeanFinetuneAccuracy(ContinualMetric):
    """Mean score of each task right after it was learnt; see `mean_finetune_accuracy`.

    Example:
        >>> metric = MeanFinetuneAccuracy(num_tasks=2)
        >>> for step, task, score in [(0, 0, 0.75), (1, 0, 0.5), (1, 1, 1.0)]:
        ...     metric.update(step, task, score)
        >>> metric.compute()
        tensor(0.8750)
    """

    plot_lower_bound: float = 0.0

    def compute(self) -> Tensor:
        """The mean of the diagonal up to the last step with a score."""
        return mean_finetune_accuracy(self.matrix)


class MeanFinalAccuracy(AveragePerformance):
    """MCITlib's name of `AveragePerformance`; see `mean_final_accuracy`.

    Example:
        >>> metric = MeanFinalAccuracy(num_tasks=1)
        >>> metric.update(0, 0, 0.5)
        >>> metric.compute()
        tensor(0.5000)
    """


class MeanAverageAccuracy(ContinualMetric):
    """Average performance averaged over the steps; see `mean_average_accuracy`.

    Example:
        >>> metric = MeanAverageAccuracy(num_tasks=2)
        >>> for step, task, score in [(0, 0, 0.75), (1, 0, 0.5), (1, 1, 1.0)]:
        ...     metric.update(step, task, score)
        >>> metric.compute()
        tensor(0.7500)
    """

    plot_lower_bound: float = 0.0

    def compute(self) -> Tensor:
        """The mean over the steps of the average performance."""
        return mean_average_accuracy(self.matrix)
