"""HPA on one linear layer: Algorithm 1 of the paper, its first two steps alone, and their settings.

Source: Harmonious Parameter Adaptation (HPA, arXiv 2511.20158, CVPR 2026), Algorithm 1 and the three sections on its
steps: focusing-based partition (eps, zeta), balanced selection (p_l, phi, alpha), orthogonal adjustment (s, W_tilde,
W_hat). The public summaries print its equations without numbers. What they leave open is marked *decision* here and in
the functions that are called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpa_lightning.functional.focus import update_focus
from hpa_lightning.functional.fusion import Units, fuse, lora_fuse_, projection_scale
from hpa_lightning.functional.merging import LoraUpdate, dense_update
from hpa_lightning.functional.retained_columns import restore_columns_, zero_columns_
from hpa_lightning.functional.selection import (
    RULES,
    balance_coefficient,
    columns_by_rule,
    partition_columns,
    retention_percent,
)

SALIENCIES = ("divide", "multiply")
UNITS = ("columns", "rows")


@dataclass(frozen=True)
class RetentionSettings:
    """Which share of the columns is retained, in percent, and how safety and task are weighed.

    Args:
        p_min: percent of the columns retained in the last decoder block, 0 to 100 (paper: 5).
        p_max: percent towards the first block, 0 to 100 (paper: 15). One above 0 and below 1 is warned of: it is often
            a fraction by mistake.
        alpha_min: smallest weight of the task focus on shared columns (paper: 0.4).
        alpha_max: largest weight (paper: 0.8).
        focus_ratio: columns counted as focused, as a multiple of the retained share (paper: 2).
        rule: how the budget is filled. ``"partition"``: the paper's two stages. The others are for ablations and
            controls: ``"safety"``, the columns of largest eps; ``"balance"``, those of largest phi = eps - alpha zeta
            out of all columns; ``"ratio"``, those of largest eps / zeta; ``"random"``, drawn by seed, layer and task.
        saliency: ``"divide"`` by diag(H^-1) (decision), or ``"multiply"`` with it; public summaries of the paper print
            the one and the other.
        reverse_alpha: lower the task's weight where safety signals dominate, instead of raising it (decision).
        seed: of ``rule="random"``; give each run its own.
        units: what is retained. ``"columns"``: input columns, each scored by the mean square of its changes and its own
            entry of diag(H^-1) (decision; the subscript ``jj``). ``"rows"``: output units, scored by the mean over the
            inputs of squared changes, each divided by that input's entry (the subscript ``ii``, as the paper's scores
            are printed, for weights stored as ``(in, out)``). Post-training HPA and ``hpa-lightning fuse`` alone.

    Raises:
        ValueError: percentages that are none or in the wrong order, a focus ratio below 1, or an unknown name.
    """

    p_min: float = 5.0
    p_max: float = 15.0
    alpha_min: float = 0.4
    alpha_max: float = 0.8
    focus_ratio: float = 2.0
    rule: str = "partition"
    saliency: str = "divide"
    reverse_alpha: bool = False
    seed: int = 0
    units: Units = "columns"

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_min <= self.p_max <= 100.0:
            raise ValueError(
                f"p_min, p_max are {self.p_min}, {self.p_max}; expected 0 <= p_min <= p_max <= 100 percent."
            )
        if self.focus_ratio < 1.0:
            raise ValueError(f"focus_ratio is {self.focus_ratio}; expected at least 1, or the budget cannot be filled.")
        if 0.0 < self.p_max < 1.0:
            warnings.warn(
                f"p_min, p_max are {self.p_min:g}, {self.p_max:g}: percent, not shares, so that at most "
                f"{self.p_max:g} % of the columns are retained. For {100 * self.p_max:g} % write "
                f"p_max={100 * self.p_max:g}.",
                stacklevel=3,
            )
        for name, known in (("rule", RULES), ("saliency", SALIENCIES), ("units", UNITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {known}.")

    def divisor(self, inverse_diagonal: Tensor) -> Tensor:
        """What a column's energy is divided by: diag(H^-1), or its inverse with ``saliency="multiply"``."""
        return inverse_diagonal if self.saliency == "divide" else 1 / inverse_diagonal


@torch.no_grad()
def focus_partition(
    update: Tensor | LoraUpdate,
    safety_diagonal: Tensor,
    task_diagonal: Tensor,
    layer: int,
    num_layers: int,
    settings: RetentionSettings | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Select what one linear layer retains from before the task: steps 1 and 2 of HPA.

    Args:
        update: `D = W_new - W_prev`, `(out_features, in_features)`, or the adapter that stands for it.
        safety_diagonal: `diag(H_s^-1)` of the safety inputs, `(in_features,)`, positive.
        task_diagonal: `diag(H_t^-1)` of the task inputs, likewise.
        layer: the layer's decoder block, counted from 1; every linear layer of a block has the same budget.
        num_layers: number of decoder blocks, the paper's `L`.
        settings: shares and weights; the paper's when None.
        generator: draws the columns of `rule="random"`; not used otherwise.

    Returns:
        The mask, boolean `(in_features,)` (`(out_features,)` with `units="rows"`), True keeps the old column (row); and
        the audit: `columns` (or rows, all of them), `units` (with rows), `retained`, `safety_focused`, `task_focused`,
        `shared` and `alpha`.

    Raises:
        ValueError: wrong shapes, or values that are not finite or not positive.

    Source: HPA (arXiv 2511.20158), focusing-based partition and balanced selection.

    Example:
        >>> import torch
        >>> update, diagonal = torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.ones(4)
        >>> mask, audit = focus_partition(update, diagonal, diagonal, layer=1, num_layers=1,
        ...                               settings=RetentionSettings(p_min=25.0, p_max=25.0))
        >>> mask.tolist(), audit["retained"], audit["shared"]
        ([True, False, False, False], 1, 2)
    """
    s = settings or RetentionSettings()
    # Step 1: eps_j = mean_i D_ij^2 / [H_s^-1]_jj and zeta_j, the same with H_t.
    epsilon, zeta = update_focus(update, [s.divisor(safety_diagonal), s.divisor(task_diagonal)], s.units)
    # Step 2: p_l = p_max - (l / L) (p_max - p_min) percent; of the shared columns those of largest eps - alpha zeta.
    percent = retention_percent(layer, num_layers, s.p_min, s.p_max)
    focus_percent = min(100.0, s.focus_ratio * percent)
    alpha = balance_coefficient(epsilon, zeta, s.alpha_min, s.alpha_max)
    if s.reverse_alpha:
        alpha = s.alpha_min + s.alpha_max - alpha
    retained = columns_by_rule(s.rule, epsilon, zeta, percent, focus_percent, alpha, generator)
    safety_focused, task_focused = partition_columns(epsilon, zeta, focus_percent)
    return retained, {
        "columns": len(retained),
        **({} if s.units == "columns" else {"units": s.units}),
        "retained": int(retained.sum()),
        "safety_focused": int(safety_focused.sum()),
        "task_focused": int(task_focused.sum()),
        "shared": int((safety_focused & task_focused).sum()),
        "alpha": float(alpha),
    }


@torch.no_grad()
def harmonious_fusion(
    weight_prev: Tensor,
    weight_new: Tensor | LoraUpdate,
    safety_diagonal: Tensor,
    task_diagonal: Tensor,
    layer: int,
    num_layers: int,
    settings: RetentionSettings | None = None,
    *,
    orthogonal: bool = True,
    generator: torch.Generator | None = None,
    broadcast: Callable[[Tensor], Tensor] | None = None,
    in_place: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """Fuse one linear layer's weights from before and after a task: HPA's Algorithm 1.

    With the mask `m` of :func:`focus_partition` and `s = <D, W_prev>_F / ||W_prev||_F^2`,

        W_hat = m * W_prev + (1 - m) * (W_prev + D - s W_prev).

    With an adapter neither `W_new` nor `B A` is ever formed as a whole.

    Decisions (see :mod:`hpa_lightning.functional.focus` and :mod:`hpa_lightning.functional.selection` for their
    reasons): scores divide by `diag(H^-1)`, indexed by input column; `H` is divided by the number of tokens;
    `H_s` is of the safety inputs through the model before the task and `H_t` of the task inputs through the model
    after it; the form and direction of alpha; counts are rounded half up and ties go to the lower column.

    Args:
        weight_prev: `W_prev`, `(out_features, in_features)`, any floating dtype.
        weight_new: `W_new`, same shape, any floating dtype, or the adapter that training put on `W_prev`.
        safety_diagonal, task_diagonal, layer, num_layers, settings, generator: see :func:`focus_partition`.
        orthogonal: step 3; False takes `W_new` in the columns that are not retained (ablation).
        broadcast: returns the mask of rank 0, where several processes hold the layer; None: there is one process.
        in_place: write `W_hat` over the trained layer's weight, which is a dense `weight_new` (of the dtype of
            `weight_prev`), or the `weight_prev` under an adapter; False: into a new tensor.

    Returns:
        `W_hat`, `(out_features, in_features)` in the dtype of `weight_prev`, retained columns bit for bit those of
        `weight_prev`; and the audit of :func:`focus_partition` with `projection_scale`, `s` (0 without `orthogonal`).

    Raises:
        ValueError: wrong shapes, or values that are not finite or not positive; nothing is written then.

    Source: HPA (arXiv 2511.20158), Algorithm 1; step 3 is its section on the orthogonal adjustment.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.tensor([[3.0, 4.0, 1.0, 1.0]])
        >>> diagonal = torch.ones(4)
        >>> quarter = RetentionSettings(p_min=25.0, p_max=25.0)
        >>> fused, audit = harmonious_fusion(old, new, diagonal, diagonal, layer=1, num_layers=1, settings=quarter)
        >>> fused, audit["projection_scale"]                       # column 1 is retained, half of W_prev is taken out
        (tensor([[2., 0., 1., 1.]]), 0.5)
    """
    s = settings or RetentionSettings()
    update = weight_new if isinstance(weight_new, LoraUpdate) else dense_update(weight_prev, weight_new)
    retained, audit = focus_partition(update, safety_diagonal, task_diagonal, layer, num_layers, s, generator)
    del update  # as large as the weight
    if broadcast is not None:
        retained = broadcast(retained)
    # Step 3: W_tilde = W_prev + D - s W_prev; W_hat = m * W_prev + (1 - m) * W_tilde.
    if isinstance(weight_new, LoraUpdate):
        fused = weight_prev if in_place else weight_prev.clone()
        a, b, g = weight_new.lora_a, weight_new.lora_b, weight_new.scaling
        scale = lora_fuse_(fused, a, b, g, retained, orthogonal, s.units)
    else:
        scale = projection_scale(weight_prev, weight_new) if orthogonal else torch.zeros((), device=weight_prev.device)
        fused = fuse(weight_prev, weight_new, retained, orthogonal, scale, s.units, weight_new if in_place else None)
    return fused, {**audit, "projection_scale": float(scale)}


def freeze_columns_(trained: Tensor, origin: Tensor | None, retained: Tensor) -> Tensor:
    """Restore the retained columns from before the task, bit for bit, in place: in-training HPA.

    Decision: the paper fuses after training. In training the same columns stay what they were after every step.

    Args:
        trained: the weight, `(out_features, in_features)`, or LoRA's `A`, `(rank, in_features)`, or some rows of them.
        origin: the same where there is no update, of its shape, dtype and device; None: 0, LoRA's `A`.
        retained: boolean `(in_features,)`, True keeps the old column.

    Returns:
        `trained`; no host synchronisation.

    Raises:
        ValueError: wrong shapes, dtypes or devices.

    Example:
        >>> import torch
        >>> freeze_columns_(torch.ones(1, 2), None, torch.tensor([True, False]))
        tensor([[0., 1.]])
    """
    if origin is None:
        return zero_columns_(trained, retained)
    return restore_columns_(trained, origin, retained)
