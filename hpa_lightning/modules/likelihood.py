"""Log-likelihoods of answers, for questions of multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpa_lightning.functional.preference_loss import answer_log_probabilities


@torch.no_grad()
def answer_log_likelihoods(forward: Callable[..., Any], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The log-likelihood of every sample's answer under the model.

    Args:
        forward: the model: inputs -> an output with ``logits``, ``(samples, tokens, vocabulary)``.
        batch: a ``train`` batch of the collator; ``labels`` are -100 everywhere but on the answer's tokens.

    Returns:
        The sum over the answer's tokens, natural logarithm, ``(samples,)`` fp32; and the number of tokens, int64. The
        end-of-turn token belongs to the answer where the chat template writes one.
    """
    logits = forward(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return answer_log_probabilities(logits, batch["labels"])
