"""Task scorers and the registry of evaluation metrics.

The metrics of answers are updated the same way, `metric.update(predictions, references)`, with one prediction and
one tuple of accepted references per record; those of multiple choice with the likelihoods of the choices.
"""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric

from hpa_lightning.metrics.safety import AttackSuccessRate, OverRefusalRate
from hpa_lightning.metrics.tasks.choice_accuracy import ChoiceAccuracy, UnsafeChoiceRate
from hpa_lightning.metrics.tasks.cider_d import CIDEr, cider
from hpa_lightning.metrics.tasks.grounding import GroundingAccuracy, grounding_accuracy
from hpa_lightning.metrics.tasks.grouped import (
    CircularAccuracy,
    CircularChoiceAccuracy,
    MMEChoiceScore,
    MMEScore,
)
from hpa_lightning.metrics.tasks.options import OptionAccuracy, option_accuracy
from hpa_lightning.metrics.tasks.relaxed import RelaxedMatch, relaxed_match
from hpa_lightning.metrics.tasks.text import (
    ContainedMatch,
    ExactMatch,
    TokenF1,
    contained_match,
    exact_match,
    normalise_answer,
    token_f1,
)
from hpa_lightning.metrics.tasks.vqa import VQAAccuracy, normalise_vqa_answer, vqa_accuracy

__all__ = [
    "CHOICE_METRICS",
    "METRICS",
    "CIDEr",
    "ChoiceAccuracy",
    "CircularAccuracy",
    "CircularChoiceAccuracy",
    "ContainedMatch",
    "ExactMatch",
    "GroundingAccuracy",
    "MMEChoiceScore",
    "MMEScore",
    "OptionAccuracy",
    "RelaxedMatch",
    "TokenF1",
    "UnsafeChoiceRate",
    "VQAAccuracy",
    "build_metric",
    "cider",
    "contained_match",
    "exact_match",
    "grounding_accuracy",
    "normalise_answer",
    "normalise_vqa_answer",
    "option_accuracy",
    "relaxed_match",
    "token_f1",
    "vqa_accuracy",
]

#: Evaluation metrics by the name that tasks and result files use.
METRICS: dict[str, type[Metric]] = {
    "exact_match": ExactMatch,
    "contained_match": ContainedMatch,
    "token_f1": TokenF1,
    "relaxed_match": RelaxedMatch,
    "vqa_accuracy": VQAAccuracy,
    "option_accuracy": OptionAccuracy,
    "circular_accuracy": CircularAccuracy,
    "mme_score": MMEScore,
    "cider": CIDEr,
    "grounding_accuracy": GroundingAccuracy,
    "attack_success_rate": AttackSuccessRate,
    "over_refusal_rate": OverRefusalRate,
}

#: Those whose score can be above 1; all others are shares.
NO_SHARES = frozenset({"cider"})

#: Those of multiple choice, which take the likelihoods of the choices instead of answers.
CHOICE_METRICS: dict[str, type[Metric]] = {
    "choice_accuracy": ChoiceAccuracy,
    "circular_choice_accuracy": CircularChoiceAccuracy,
    "mme_choice_score": MMEChoiceScore,
    "unsafe_choice_rate": UnsafeChoiceRate,
}


def build_metric(name: str, **kwargs: Any) -> Metric:
    """Builds the evaluation metric of that name.

    Args:
        name: a key of `METRICS` or `CHOICE_METRICS`.
        kwargs: arguments of its class, such as `judge`.

    Raises:
        ValueError: if there is no metric of that name.

    Example:
        >>> build_metric("attack_success_rate", judge="vlguard").judge
        StringRefusalJudge('vlguard')
    """
    known = METRICS | CHOICE_METRICS
    if name not in known:
        raise ValueError(f"Unknown metric {name!r}: expected one of {', '.join(known)}.")
    return known[name](**kwargs)
