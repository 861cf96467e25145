"""Continual-learning metrics against loops over the definition in float64."""

import math

import numpy as np
import pytest
import torch

from hpa_lightning.metrics import continual

FUNCTIONS = {
    continual.AveragePerformance: continual.average_performance,
    continual.BackwardTransfer: continual.backward_transfer,
    continual.MeanFinetuneAccuracy: continual.mean_finetune_accuracy,
    continual.MeanFinalAccuracy: continual.mean_final_accuracy,
    continual.MeanAverageAccuracy: continual.mean_average_accuracy,
}


def reference(function, scores: np.ndarray) -> float:
    """The definitions with 1-based loops."""
    tasks = len(scores)

    def r(j: int, i: int) -> float:
        return float(scores[j - 1][i - 1])

    if function in (continual.average_performance, continual.mean_final_accuracy):
        return sum(r(tasks, i) for i in range(1, tasks + 1)) / tasks
    if function is continual.backward_transfer:
        return sum(r(tasks, i) - r(i, i) for i in range(1, tasks)) / (tasks - 1)
    if function is continual.mean_finetune_accuracy:
        return sum(r(i, i) for i in range(1, tasks + 1)) / tasks
    return sum(sum(r(j, i) for i in range(1, j + 1)) / j for j in range(1, tasks + 1)) / tasks


def partly_filled(rng: np.random.Generator, tasks: int, done: int) -> np.ndarray:
    matrix = np.full((tasks, tasks), np.nan)
    matrix[:done] = rng.random((done, tasks))
    return matrix


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize(("tasks", "done"), [(2, 2), (6, 6), (6, 3), (6, 2)])
def test_function_matches_the_definition(function, tasks: int, done: int) -> None:
    matrix = partly_filled(np.random.default_rng(tasks + done), tasks, done)
    expected = reference(function, matrix[:done, :done])
    assert float(function(matrix)) == pytest.approx(expected, rel=1e-12)
    assert float(function(matrix, step=done - 1)) == pytest.approx(expected, rel=1e-12)
    assert float(function(matrix, step=1)) == pytest.approx(reference(function, matrix[:2, :2]), rel=1e-12)


@pytest.mark.parametrize(("metric_class", "function"), FUNCTIONS.items())
def test_class_filled_cell_by_cell_matches_the_function(metric_class, function) -> None:
    matrix = partly_filled(np.random.default_rng(0), 4, 3)
    metric = metric_class(num_tasks=4)
    for step in range(3):
        for task in range(4):
            metric.update(step, task, matrix[step, task])
    assert float(metric.compute()) == pytest.approx(float(function(matrix)), abs=1e-6)
    metric.reset()
    assert bool(metric.matrix.isnan().all())


def test_published_backward_transfer_divides_by_the_earlier_tasks() -> None:
    # Two tasks, the first falls from 0.9 to 0.4: the loss is 0.5, not 0.5 / 2.
    assert float(continual.backward_transfer([[0.9, 0.0], [0.4, 0.8]])) == pytest.approx(-0.5)


def test_one_task_has_no_backward_transfer() -> None:
    assert math.isnan(continual.backward_transfer([[0.9]]))
    assert float(continual.average_performance([[0.9]])) == pytest.approx(0.9)


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_a_missing_score_is_not_averaged_away(function) -> None:
    matrix = np.random.default_rng(1).random((3, 3))
    matrix[2, 0] = matrix[0, 0] = np.nan
    assert math.isnan(function(matrix))


def test_scores_of_tasks_not_learnt_yet_do_not_count() -> None:
    matrix = np.full((3, 3), np.nan)
    matrix[0] = [0.5, 0.9, 0.9]
    assert float(continual.average_performance(matrix)) == pytest.approx(0.5)


def test_repeated_cell_is_overwritten() -> None:
    metric = continual.AveragePerformance(num_tasks=1)
    metric.update(0, 0, 0.2)
    metric.update(0, 0, torch.tensor(0.7))
    assert float(metric.compute()) == pytest.approx(0.7)


@pytest.mark.parametrize("bad", [[[0.1, 0.2]], [0.1, 0.2], np.zeros((0, 0))])
def test_matrix_must_be_square(bad) -> None:
    with pytest.raises(ValueError, match=r"shape \(T, T\)"):
        continual.average_performance(bad)


def test_bad_updates_name_what_was_expected() -> None:
    metric = continual.BackwardTransfer(num_tasks=2)
    with pytest.raises(ValueError, match=r"step must be in 0 \.\. 1"):
        metric.update(-1, 0, 0.5)
    with pytest.raises(ValueError, match=r"task must be in 0 \.\. 1"):
        metric.update(0, 2, 0.5)
    with pytest.raises(ValueError, match="finite"):
        metric.update(0, 0, math.nan)
    with pytest.raises(ValueError, match="at least 1"):
        continual.BackwardTransfer(num_tasks=0)
    with pytest.raises(ValueError, match=r"step must be in 0 \.\. 1"):
        continual.average_performance(np.eye(2), step=2)


@pytest.mark.parametrize("metric_class", FUNCTIONS)
def test_plot_and_flags(metric_class) -> None:
    metric = metric_class(num_tasks=2)
    for step, task, score in [(0, 0, 0.75), (1, 0, 0.5), (1, 1, 1.0)]:
        metric.update(step, task, score)
    figure, axes = metric.plot()
    assert figure is axes.figure and axes.lines
    assert metric.higher_is_better and not metric.is_differentiable and not metric.full_state_update
