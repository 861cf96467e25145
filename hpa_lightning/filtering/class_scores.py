"""Classifiers' outputs as scores, and the labels that mean harm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hpa_lightning.filtering.assessment import Assessment, Finding
from hpa_lightning.values import names, nearest

ACTIVATIONS = ("auto", "softmax", "sigmoid")


def check_activation(part: str, activation: str) -> str:
    """Return the name of an activation.

    Raises:
        ValueError: named by ``part``: there is no such.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"{part}: activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}.")
    return activation


def class_scores(logits: Tensor, activation: str, several: bool) -> Tensor:
    """Return scores in [0, 1].

    Args:
        logits: ``(n, labels)``.
        activation: ``"auto"`` is what the pipelines of transformers do: a sigmoid for several labels at once and for a
            single output, else softmax.
        several: whether the model gives several labels at once.
    """
    sigmoid = activation == "sigmoid" or (activation == "auto" and (several or logits.shape[-1] == 1))
    return logits.float().sigmoid() if sigmoid else logits.float().softmax(-1)


def wanted_labels(part: str, labels: Any, threshold: float, known: list[str] | None = None) -> dict[str, float]:
    """Return label -> threshold of the labels that count as harm.

    Args:
        part: for messages.
        labels: a list, each with ``threshold``, or a dictionary with thresholds of their own.
        threshold: in (0, 1].
        known: the model's labels, where they are known.

    Raises:
        ValueError: named by ``part``: no label, one that the model does not have, a threshold outside (0, 1].
    """
    if isinstance(labels, str) or not labels:
        raise ValueError(f"{part}: labels is {labels!r}; expected a list of labels, or label: threshold.")
    wanted = dict(labels) if isinstance(labels, dict) else dict.fromkeys(labels, threshold)
    for label, limit in wanted.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= 1:
            raise ValueError(f"{part}: the threshold of {label!r} is {limit}; expected a number above 0, at most 1.")
        if known is not None and label not in known:
            raise ValueError(
                f"{part}: the model has no label {label!r}{nearest(str(label), known)}; it has {names(known)}."
            )
    return {str(label): float(limit) for label, limit in wanted.items()}


def label_finding(scores: Mapping[str, float], limits: Mapping[str, float], where: str) -> Finding:
    """Return what the scores of one text or picture say: of the labels that reach their limits, else of all of harm.

    Scores that are no numbers (of a model that overflows in its dtype) are no verdict.

    Args:
        scores: label -> score, of all labels.
        limits: label -> least score, of those that mean harm; see :func:`wanted_labels`.
        where: the text or picture.

    >>> label_finding({"nude": 0.4, "gore": 0.9, "safe": 0.1}, {"nude": 0.3, "gore": 0.8}, "image 0").categories
    ('nude', 'gore')
    """
    if lost := [label for label in limits if math.isnan(scores[label])]:
        detail = f"the score of {lost[0]!r} is not a number; another dtype may help"
        return Finding(Assessment.NO_VERDICT, where=where, detail=detail)
    passed = [label for label, limit in limits.items() if scores[label] >= limit]
    label = max(passed or limits, key=lambda name: scores[name])
    return Finding.of(bool(passed), label, scores[label], passed, where)
