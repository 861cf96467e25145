"""Preference losses: log-probabilities of whole answers, and what is minimised over pairs of them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "bco_pair", "nca_pair"]

SMOOTHED: frozenset[str] = frozenset({"sigmoid", "robust"})
"""Losses that know a share of labels that are wrong."""

_IGNORED = -100


def answer_log_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of every sequence's answer.

    The token at position ``t`` is predicted by the logits at ``t - 1``: the first token of a sequence is predicted by
    nothing, and the logits behind the last one predict nothing. Only the answers' positions are taken in fp32.

    Args:
        logits: ``(sequences, tokens, vocabulary)``, floating point.
        labels: ``(sequences, tokens)`` int64, -100 where no token of an answer stands.

    Returns:
        The sums over the answers' tokens, natural logarithm, ``(sequences,)`` fp32 (fp64 for fp64 logits); and the
        numbers of these tokens, ``(sequences,)`` int64.

    Raises:
        ValueError: the shapes do not fit.

    >>> total, tokens = answer_log_probabilities(torch.zeros(1, 3, 4), torch.tensor([[0, 2, -100]]))
    >>> round(float(total), 4), int(tokens)
    (-1.3863, 1)
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (sequences, tokens, "
            "vocabulary) and (sequences, tokens)."
        )
    counted = labels[:, 1:] != _IGNORED
    answers = labels[:, 1:][counted]
    predicted = logits[:, :-1][counted]
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    logarithms = predicted.gather(-1, answers[:, None]).squeeze(-1) - predicted.logsumexp(-1)
    spread = torch.zeros(counted.shape, dtype=logarithms.dtype, device=logarithms.device)
    return spread.masked_scatter(counted, logarithms).sum(1), counted.sum(1)


def preference_loss(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    loss: PreferenceLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
) -> Tensor:
    """The loss of every pair, by the names that TRL's ``DPOTrainer`` gives them.

    With the log-ratios ``c`` and ``r`` of policy and reference on the chosen and the rejected answer, and
    ``x = beta (c - r)``:

    - ``"sigmoid"``: DPO, ``-log sigma(x)`` (Rafailov et al., NeurIPS 2023, arXiv 2305.18290, eq. 7). With
      ``label_smoothing`` e it is cDPO: ``-(1 - e) log sigma(x) - e log sigma(-x)`` (Mitchell, 2023).
    - ``"ipo"``: ``(c / chosen tokens - r / rejected tokens - 1 / (2 beta))^2`` (Azar et al., AISTATS 2024, arXiv
      2310.12036, eq. 17). Decision: as TRL, means over the answers' tokens instead of the sums.
    - ``"hinge"``: ``max(0, 1 - x)`` (SLiC, arXiv 2305.10425).
    - ``"robust"``: ``(-(1 - e) log sigma(x) + e log sigma(-x)) / (1 - 2 e)`` (Chowdhury et al., arXiv 2403.00409).
    - ``"apo_zero"``: ``1 - sigma(beta c) + sigma(beta r)``; ``"apo_down"``: ``sigma(beta c) + 1 - sigma(x)``
      (D'Oosterlinck et al., arXiv 2408.06266).
    - ``"bco_pair"``: ``-log sigma(beta c) - log sigma(-beta r)`` (arXiv 2404.04656, without its shift of the rewards).
    - ``"nca_pair"``: ``-log sigma(beta c) - log sigma(-beta c) / 2 - log sigma(-beta r) / 2`` (arXiv 2402.05369).

    Args:
        chosen_ratio: log-probability of the chosen answer under the policy less that under the reference, ``(pairs,)``.
        rejected_ratio: the same of the rejected answer.
        loss: which of them.
        beta: strength of the reference, above 0; of ``"ipo"`` its tau.
        label_smoothing: share of labels that are taken to be wrong, in [0, 0.5).
        chosen_tokens: of the chosen answers, ``(pairs,)``; ``"ipo"`` needs it.
        rejected_tokens: of the rejected answers.

    Returns:
        ``(pairs,)``.

    Raises:
        ValueError: see :func:`check_preference_loss`; shapes that differ, or ``"ipo"`` without token counts.

    >>> preference_loss(torch.tensor([2.0]), torch.tensor([-3.0]), beta=0.1)
    tensor([0.4741])
    """
    check_preference_loss(loss, beta, label_smoothing)
    if chosen_ratio.shape != rejected_ratio.shape or chosen_ratio.ndim != 1:
        raise ValueError(
            f"log-ratios are {tuple(chosen_ratio.shape)} and {tuple(rejected_ratio.shape)}; expected (pairs,) twice."
        )
    chosen, rejected = beta * chosen_ratio, beta * rejected_ratio
    margin = chosen - rejected
    if loss == "sigmoid":
        return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    if loss == "robust":
        clean, flipped = (1 - label_smoothing) * F.logsigmoid(margin), label_smoothing * F.logsigmoid(-margin)
        return (flipped - clean) / (1 - 2 * label_smoothing)
    if loss == "ipo":
        if chosen_tokens is None or rejected_tokens is None:
            raise ValueError("loss 'ipo' compares means over tokens; expected chosen_tokens and rejected_tokens.")
        means = chosen_ratio / chosen_tokens.clamp(min=1) - rejected_ratio / rejected_tokens.clamp(min=1)
        return (means - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return torch.relu(1 - margin)
    if loss == "apo_zero":
        return 1 - chosen.sigmoid() + rejected.sigmoid()
    if loss == "apo_down":
        return chosen.sigmoid() + 1 - margin.sigmoid()
    if loss == "bco_pair":
        return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def check_preference_loss(loss: str, beta: float, label_smoothing: float) -> None:
    """Check the settings of :func:`preference_loss`.

    Raises:
        ValueError: an unknown loss, ``beta`` not above 0, smoothing outside [0, 0.5), or of a loss that knows none.
    """
    if loss not in get_args(PreferenceLoss):
        raise ValueError(f"the preference loss is {loss!r}; expected one of {', '.join(get_args(PreferenceLoss))}.")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; expected a number above 0.")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a share in [0, 0.5).")
    if label_smoothing > 0 and loss not in SMOOTHED:
        raise ValueError(
            f"label_smoothing is {label_smoothing} with the loss {loss!r}; expected 0, or one of "
            f"{', '.join(sorted(SMOOTHED))}."
        )
