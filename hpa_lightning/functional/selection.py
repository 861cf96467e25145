"""Which input columns of a weight are kept from before the task (steps 1 and 2 of HPA).

The functions choose by score alone: with the scores of a weight's output rows (`hpa_lightning.functional.row_focus`)
they choose rows, and `c` is the number of rows.

Percentages are of the columns, 0 to 100. Masks are boolean `(c,)`; in a retention mask True keeps the old
column. Counts are `floor(p * c / 100 + 0.5)`, never above `c`, and ties go to the lower column index.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import check_finite, check_float, check_number

RULES = ("partition", "safety", "balance", "ratio", "random")


def retention_percent(layer: int, num_layers: int, p_min: float = 5.0, p_max: float = 15.0) -> float:
    """Share of columns that a layer keeps: `p_max - (layer / num_layers) (p_max - p_min)`, in percent.

    Args:
        layer: decoder block, counted from 1.
        num_layers: number of decoder blocks.
        p_min: percent at the last block.
        p_max: upper end of the schedule, approached at the first block.

    Raises:
        ValueError: `layer` outside 1 to `num_layers`, percentages outside 0 to 100, or `p_min > p_max`.

    Source: HPA (arXiv 2511.20158), step 2.

    Example:
        >>> retention_percent(1, 4), retention_percent(4, 4)
        (12.5, 5.0)
    """
    is_whole_number = isinstance(layer, int) and isinstance(num_layers, int)
    if not is_whole_number or not 1 <= layer <= num_layers:
        raise ValueError(f"layer: expected an integer from 1 to num_layers, got {layer!r} of {num_layers!r}.")
    check_number("p_min", p_min, 0.0, 100.0)
    check_number("p_max", p_max, 0.0, 100.0)
    if p_min > p_max:
        raise ValueError(f"expected p_min <= p_max, got p_min={p_min}, p_max={p_max}.")
    return p_max - (layer / num_layers) * (p_max - p_min)


@torch.no_grad()
def balance_coefficient(
    safety_focus: Tensor, task_focus: Tensor, alpha_min: float = 0.4, alpha_max: float = 0.8
) -> float:
    """Weight of the task focus in a shared column's score.

    `alpha = alpha_min + (alpha_max - alpha_min) (1 + tanh m) / 2`, with `m` the mean of `log(eps_j / zeta_j)`
    over the columns where both focuses are positive; `m = 0` if there is none.

    What is printed: alpha lies between alpha_0 and alpha_1 by the tanh of the expectation of `log(eps / zeta)`.
    Decision: `(1 + tanh m) / 2` as the share of the way, and its direction, which raises the task's weight where safety
    signals dominate; neither is printed. `reverse_alpha` of `RetentionSettings` takes the other direction.

    Args:
        safety_focus: `eps`, `(c,)`, not negative.
        task_focus: `zeta`, `(c,)`, not negative.
        alpha_min: lower end, the paper's alpha_0.
        alpha_max: upper end, the paper's alpha_1.

    Raises:
        ValueError: wrong shapes, non-finite or negative values, or `alpha_min > alpha_max`.

    Example:
        >>> import torch
        >>> focus = torch.tensor([1.0, 2.0, 0.0])
        >>> round(balance_coefficient(focus, focus), 4)
        0.6
        >>> round(balance_coefficient(1000 * focus, focus), 4)
        0.8
    """
    _check_focus(safety_focus, task_focus)
    check_number("alpha_min", alpha_min)
    check_number("alpha_max", alpha_max)
    if alpha_min > alpha_max:
        raise ValueError(f"expected alpha_min <= alpha_max, got {alpha_min} and {alpha_max}.")
    eps, zeta = safety_focus.to(torch.float64), task_focus.to(torch.float64)
    moved = (eps > 0) & (zeta > 0)
    # A difference of logarithms: the quotient of two float64 extremes could overflow.
    mean = float((eps[moved].log() - zeta[moved].log()).mean()) if bool(moved.any()) else 0.0
    return alpha_min + (alpha_max - alpha_min) * (1.0 + math.tanh(mean)) / 2.0


@torch.no_grad()
def partition_columns(safety_focus: Tensor, task_focus: Tensor, focus_percent: float) -> tuple[Tensor, Tensor]:
    """Find the columns with the largest safety focus and those with the largest task focus.

    A column in both is *shared*.

    Args:
        safety_focus: `eps`, `(c,)`, not negative.
        task_focus: `zeta`, `(c,)`, not negative.
        focus_percent: share of the columns in each of the two sets, in percent.

    Returns:
        `(safety_focused, task_focused)`, boolean `(c,)` masks with equal counts.

    Raises:
        ValueError: wrong shapes, non-finite or negative values, percentage outside 0 to 100.

    Source: HPA (arXiv 2511.20158), step 1.

    Example:
        >>> import torch
        >>> eps, zeta = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> safety_focused, task_focused = partition_columns(eps, zeta, focus_percent=50)
        >>> safety_focused.tolist(), task_focused.tolist()
        ([True, True, False, False], [False, True, False, True])
    """
    _check_focus(safety_focus, task_focus)
    check_number("focus_percent", focus_percent, 0.0, 100.0)
    count = _column_count(focus_percent, safety_focus.shape[0])
    everything = torch.ones_like(safety_focus, dtype=torch.bool)
    return _largest(safety_focus, everything, count), _largest(task_focus, everything, count)


@torch.no_grad()
def retained_columns(
    safety_focus: Tensor,
    task_focus: Tensor,
    percent: float,
    focus_percent: float | None = None,
    alpha: float | None = None,
) -> Tensor:
    """Choose the columns that are kept from before the task.

    The budget is `percent` of the columns. First come the safety-focused columns that are not shared, by
    largest `eps` if they exceed it; what is left is filled from the shared columns by largest
    `phi = eps - alpha * zeta`. Only safety-focused columns are ever kept, so that with
    `focus_percent < percent` fewer columns than the budget are.

    Args:
        safety_focus: `eps`, `(c,)`, not negative.
        task_focus: `zeta`, `(c,)`, not negative.
        percent: the budget, in percent of the columns.
        focus_percent: size of the safety- and of the task-focused set in percent; None: `2 * percent`, at
            most 100.
        alpha: weight of the task focus among shared columns; None: `balance_coefficient`.

    Returns:
        Boolean `(c,)`; True keeps the old column.

    Raises:
        ValueError: wrong shapes, non-finite or negative values, percentages outside 0 to 100.

    Source: HPA (arXiv 2511.20158), step 2.

    Example:
        >>> import torch
        >>> eps, zeta = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> retained_columns(eps, zeta, percent=25).tolist()    # column 1 is shared, column 0 comes first
        [True, False, False, False]
    """
    _check_focus(safety_focus, task_focus)
    check_number("percent", percent, 0.0, 100.0)
    focus_percent = min(2.0 * percent, 100.0) if focus_percent is None else focus_percent
    alpha = balance_coefficient(safety_focus, task_focus) if alpha is None else alpha
    check_number("alpha", alpha)
    safety_focused, task_focused = partition_columns(safety_focus, task_focus, focus_percent)
    budget = _column_count(percent, safety_focus.shape[0])
    shared = safety_focused & task_focused
    first = _largest(safety_focus, safety_focused & ~shared, budget)
    # float64: the score is a difference of nearly equal numbers where the two focuses agree.
    score = safety_focus.to(torch.float64) - alpha * task_focus.to(torch.float64)
    return first | _largest(score, shared, budget - int(first.sum()))


@torch.no_grad()
def top_columns(score: Tensor, percent: float) -> Tensor:
    """Choose the columns of largest score.

    Args:
        score: `(c,)`, of any sign.
        percent: how many, in percent of the columns.

    Returns:
        Boolean `(c,)`.

    Raises:
        ValueError: wrong shape, non-finite values, percentage outside 0 to 100.

    Example:
        >>> import torch
        >>> top_columns(torch.tensor([-1.0, 3.0, 3.0, 0.0]), percent=25).tolist()
        [False, True, False, False]
    """
    check_float("score", score, ("c",))
    check_finite("score", score)
    check_number("percent", percent, 0.0, 100.0)
    everything = torch.ones_like(score, dtype=torch.bool)
    return _largest(score, everything, _column_count(percent, score.shape[0]))


@torch.no_grad()
def columns_by_rule(
    rule: str,
    safety_focus: Tensor,
    task_focus: Tensor,
    percent: float,
    focus_percent: float,
    alpha: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the columns that are kept, by the paper's rule or by one of those that it is compared with.

    Args:
        rule: `"partition"` (`retained_columns`), or the columns of largest eps (`"safety"`), eps - alpha zeta
            (`"balance"`), eps / zeta (`"ratio"`), or drawn by `generator` (`"random"`).
        safety_focus, task_focus, percent, focus_percent, alpha: see `retained_columns`.
        generator: on the CPU.

    Returns:
        Boolean `(c,)`; True keeps the old column.

    Raises:
        ValueError: an unknown rule, `"random"` without a generator, or see `retained_columns`.
    """
    if rule == "partition":
        return retained_columns(safety_focus, task_focus, percent, focus_percent, alpha)
    eps, task = safety_focus.double(), task_focus.double()
    if rule == "safety":
        score = eps
    elif rule == "balance":
        score = eps - alpha * task
    elif rule == "ratio":
        score = torch.where(task > 0, eps / task, 0.0)
    elif rule == "random":
        if generator is None:
            raise ValueError("rule 'random' draws columns by a generator; got none.")
        score = torch.rand(len(eps), generator=generator, dtype=torch.float64)
    else:
        raise ValueError(f"rule is {rule!r}; expected one of {RULES}.")
    return top_columns(score.to(safety_focus.device), percent)


def _column_count(percent: float, columns: int) -> int:
    return min(columns, math.floor(percent * columns / 100 + 0.5))


def _largest(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Mask of the (at most) `count` candidates of largest value; ties go to the lower index."""
    order = torch.sort(values, descending=True, stable=True).indices
    chosen = order[candidates[order]][:count]
    mask = torch.zeros_like(candidates)
    mask[chosen] = True
    return mask


def _check_focus(safety_focus: Tensor, task_focus: Tensor) -> None:
    check_float("safety_focus", safety_focus, ("c",))
    check_float("task_focus", task_focus, (safety_focus.shape[0],), like=safety_focus)
    for name, focus in (("safety_focus", safety_focus), ("task_focus", task_focus)):
        check_finite(name, focus)
        if bool((focus < 0).any()):
            raise ValueError(f"{name}: expected values >= 0 (mean squares), got a minimum of {float(focus.min()):g}.")
