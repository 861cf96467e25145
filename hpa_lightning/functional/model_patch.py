"""Model Tailor: the few tuned entries that the task needs most, with compensation for the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpa_lightning.functional.brain_surgeon import Sweep, check_block_size, check_edit, edit_in_blocks
from hpa_lightning.functional.numerics.checks import check_number, check_result


@torch.no_grad()
def model_tailor(
    weight_prev: Tensor,
    weight_new: Tensor,
    factor: Tensor,
    keep_percent: float = 10.0,
    mix: float = 0.5,
    block_size: int = 128,
    scores_after_compensation: bool = False,
    compensation: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Keep the tuned entries that matter most to the task and return the rest, with compensation: Model Tailor.

    Within a block of columns, with `d_j = U_jj` and z-scores over each row,

        score_ij = mix * z(|D_ij|) + (1 - mix) * z(W_new,ij^2 / d_j^2),      D = W_new - W_prev.

    The `keep_percent` of a block's entries with the largest score stay tuned; the others return to `weight_prev`.
    Each return is made up for by the entries to its right that stay, so that the task output of the tuned weight is
    held (:func:`compensate`): returned entries end at `weight_prev` exactly, kept ones at `weight_new` plus the
    compensation.

    Decision: the sign of the compensation is the one that lowers the output error; that in the authors' code is the
    opposite (`compensation=-1`). Decision: scores are those of the tuned weight as trained, also in blocks that
    compensation from earlier ones has reached; theirs are not (`scores_after_compensation=True`). Their code mixes 0.8
    to 0.2 (`mix=0.8`) and keeps `entries - floor(0.9 entries) - 1` entries of a block. Decision: the count in a
    block is `floor(keep_percent * entries / 100 + 0.5)`, ties go to the lower row and then to the lower column, and
    a row without spread has z = 0.

    Args:
        weight_prev: weight before the task, `(out_features, in_features)`, any floating dtype.
        weight_new: tuned weight, same shape, any floating dtype.
        factor: `U` of the Hessian of the task inputs, `(in_features, in_features)`, from :func:`surgeon_factor`.
        keep_percent: percent of the entries that stay tuned; 0 returns `weight_prev` bit for bit, 100 `weight_new`
            (in the dtype of `weight_prev`).
        mix: share of the change's size in the score, in [0, 1]; the rest is the saliency's.
        block_size: columns within which scores are normalised and compared.
        scores_after_compensation: take `W_new` in a block's saliency as compensation from earlier blocks has left it.
        compensation: factor of the compensation; 0 for none.

    Returns:
        the weight `(out_features, in_features)` in the dtype of `weight_prev`, and the boolean mask of the same shape
        of the entries that stayed tuned.

    Raises:
        ValueError: wrong shapes or devices, non-finite values, or a setting out of its range.

    Source: Zhu et al., Model Tailor (ICML 2024, arXiv 2402.12048).

    Example:
        >>> import torch
        >>> from hpa_lightning.functional import surgeon_factor
        >>> old, new = torch.zeros(1, 4), torch.tensor([[1.0, 4.0, 2.0, 3.0]])
        >>> model_tailor(old, new, surgeon_factor(torch.eye(4)), keep_percent=50.0)
        (tensor([[0., 4., 0., 3.]]), tensor([[False,  True, False,  True]]))
    """
    check_edit(weight_prev, weight_new, factor)
    check_number("keep_percent", keep_percent, 0.0, 100.0)
    check_number("mix", mix, 0.0, 1.0)
    check_block_size(block_size)

    def give_back(block: slice, current: Tensor) -> Tensor:
        change = (weight_new[:, block].to(torch.float64) - weight_prev[:, block].to(torch.float64)).abs_()
        saliency = (current.to(torch.float64) / factor.diagonal()[block].to(torch.float64)).square_()
        score = mix * _z_scores(change) + (1.0 - mix) * _z_scores(saliency)
        count = math.floor(keep_percent * score.numel() / 100.0 + 0.5)
        moved = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
        moved[torch.argsort(score.flatten(), descending=True, stable=True)[:count]] = False
        return moved.view_as(score)

    sweep = Sweep(weight_new, weight_prev, factor, strength=compensation)
    original = None if scores_after_compensation else weight_new
    moved = edit_in_blocks(sweep, weight_prev.shape[1], block_size, give_back, original)
    return check_result("edited weight", sweep.result().to(weight_prev.dtype)), ~moved


def _z_scores(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt_()
    # What rounding leaves of a row of equal values is no spread.
    flat = spread <= 1e-12 * values.abs().amax(dim=1, keepdim=True)
    return torch.where(flat, 0.0, centred / spread)
