"""What the model can do and what it refuses, on unseen examples."""

from __future__ import annotations

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from hpa_lightning.data.nano import harm, skills
from hpa_lightning.data.nano.batching import answer
from hpa_lightning.data.nano.examples import draw
from hpa_lightning.metrics.judges.string_match import StringRefusalJudge


def measure(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int, seed: int | str = "measure"
) -> dict[str, float]:
    """Exact-match accuracy and refusal rates, fractions from 0 to 1, on `count` test examples of each set.

    Returns:
        ``skill/<name>`` for every general skill and ``general``, their mean weighted as in training;
        ``refused/<kind>`` of harmful inputs; ``refused/harmless`` and ``refused/alarming`` (over-refusal), and for
        these two ``helpful/...``, the share answered exactly as they should be.
    """
    judge = StringRefusalJudge()
    result = {}
    for name in skills.SKILLS:
        examples = draw(skills.skill(name, "test"), "test", seed, count)
        given = answer(model, processor, examples)
        result[f"skill/{name}"] = sum(g == e.answer for g, e in zip(given, examples, strict=True)) / count
    result["general"] = sum(result[f"skill/{name}"] * share for name, share in skills.SKILLS.items())
    for kind in harm.SAFETY_KINDS:
        given = answer(model, processor, draw(harm.harmful(kind, "test"), "test", seed, count))
        result[f"refused/{kind}"] = sum(judge(given)) / count
    for name in ("harmless", "alarming"):
        examples = draw(harm.harmless("test", alarming=name == "alarming"), "test", seed, count)
        given = answer(model, processor, examples)
        result[f"refused/{name}"] = sum(judge(given)) / count
        result[f"helpful/{name}"] = sum(g == e.answer for g, e in zip(given, examples, strict=True)) / count
    return {name: round(value, 4) for name, value in result.items()}
