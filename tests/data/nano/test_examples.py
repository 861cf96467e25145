"""The generators: seeded, and disjoint by content."""

import random

import pytest

from hpa_lightning.data.nano import harm, nano_tasks, skills
from hpa_lightning.data.nano.examples import SPLITS, draw, split_of

GENERATORS = {
    **{name: lambda split, name=name: nano_tasks.task(name, split) for name in nano_tasks.TASKS},
    **{kind: lambda split, kind=kind: harm.harmful(kind, split) for kind in harm.SAFETY_KINDS},
    "over-refusal": lambda split: harm.harmless(split, alarming=True),
    "general": skills.general,
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_gives_the_same_examples_and_another_seed_others(name: str) -> None:
    first, again, other = (draw(GENERATORS[name]("train"), "train", seed, 30) for seed in (0, 0, 1))
    assert [(e.key, e.answer) for e in first] == [(e.key, e.answer) for e in again]
    assert [e.key for e in first] != [e.key for e in other]


@pytest.mark.parametrize("name", GENERATORS)
def test_splits_share_no_prompt_whatever_the_seed(name: str) -> None:
    keys = {
        split: {e.key for seed in range(2) for e in draw(GENERATORS[name](split), split, seed, 60)} for split in SPLITS
    }
    assert not keys["train"] & keys["calibration"]
    assert not keys["train"] & keys["test"]
    assert not keys["calibration"] & keys["test"]


def test_the_split_of_a_prompt_is_about_80_10_10() -> None:
    drawn = [split_of(key) for key in range(0, 400_000, 37)]
    shares = [drawn.count(split) / len(drawn) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_too_many_examples_are_refused() -> None:
    example = skills.skill("text", "test")(random.Random(0))
    with pytest.raises(ValueError, match="Only"):
        draw(lambda rng: example, split_of(example.key), 0, 2)
