"""Judges: callables that tell for every response whether the model refused, or whether it is safe."""

from hpa_lightning.metrics.judges.guard import GuardModelJudge
from hpa_lightning.metrics.judges.string_match import (
    RefusalJudge,
    StringRefusalJudge,
    judge_name,
    partial_refusals,
    resolve_judge,
)
from hpa_lightning.metrics.judges.verdicts import Verdict

__all__ = [
    "GuardModelJudge",
    "RefusalJudge",
    "StringRefusalJudge",
    "Verdict",
    "judge_name",
    "partial_refusals",
    "resolve_judge",
]
