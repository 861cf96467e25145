"""Harmless requests with answers."""

from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.smol.ordinary_prompts import ordinary_prompts


def test_there_are_enough_of_both_kinds_each_once_answered_and_not_refused() -> None:
    prompts = ordinary_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    kinds = [prompt.kind for prompt in prompts]
    assert kinds.count("ordinary") >= 120 and kinds.count("dangerous words") >= 700
    assert all(3 <= len(prompt.answer.split()) <= 60 for prompt in prompts)
    assert not any(resolve_judge("default")([prompt.answer for prompt in prompts]))
