"""Refusal judges: callables that tell for every response whether the model refused."""

from hpa_lightning.metrics.judges.string_match import RefusalJudge, StringRefusalJudge, resolve_judge

__all__ = ["RefusalJudge", "StringRefusalJudge", "resolve_judge"]
