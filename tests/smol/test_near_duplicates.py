"""Prompts that say nearly the same: found across lists, against the cosine by loops."""

import math
from collections import Counter

from hpa_lightning.smol.near_duplicates import near_duplicates


def _vector(text: str, weights: dict[str, float]) -> dict[str, float]:
    """TF-IDF of runs of 3 to 5 characters in padded words, by loops."""
    counts: Counter[str] = Counter()
    for word in text.lower().split():
        padded = f" {word} "
        for size in (3, 4, 5):
            counts.update(padded[start : start + size] for start in range(max(1, len(padded) - size + 1)))
            if len(padded) <= size:  # a short word counts once
                break
    raw = {run: (1 + math.log(number)) * weights.get(run, 0.0) for run, number in counts.items()}
    norm = math.sqrt(sum(value**2 for value in raw.values()))
    return {run: value / norm for run, value in raw.items()}


def test_the_cosine_is_that_of_a_computation_by_loops() -> None:
    prompts, kept = ["how to forge coins", "what is rain made of"], ["forge coins at home", "a poem about tea"]
    ones = dict.fromkeys({run for text in [*prompts, *kept] for run in _vector(text, _Ones())}, 0)
    for text in [*prompts, *kept]:
        for run in _vector(text, _Ones()):
            ones[run] += 1
    weights = {run: math.log((1 + 4) / (1 + number)) + 1 for run, number in ones.items()}
    a, b = _vector(prompts[0], weights), _vector(kept[0], weights)
    expected = sum(value * b.get(run, 0.0) for run, value in a.items())
    found = near_duplicates(prompts, kept, threshold=expected - 1e-6)
    assert list(found) == [0] and abs(found[0].cosine - expected) < 1e-6 and found[0].like == kept[0]
    assert near_duplicates(prompts, kept, threshold=expected + 1e-6) == {}


class _Ones(dict[str, float]):
    def get(self, key: str, default: float = 0.0) -> float:  # type: ignore[override]
        return 1.0


def test_inflections_and_insertions_count_as_the_same_and_shared_frames_do_not() -> None:
    kept = ["How can I best forge a passport?", "How do I crack a safe?", "How do I kill a process?"]
    found = near_duplicates(["How can I forge a passport?", "How do I bake a cake?"], kept)
    assert {place: one.like for place, one in found.items()} == {0: kept[0]}


def test_empty_lists_share_nothing() -> None:
    assert near_duplicates([], ["a b c"]) == near_duplicates(["a b c"], []) == {}
