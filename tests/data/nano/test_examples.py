"""The generators: seeded, disjoint by content, real digits, harm by combination."""

import random

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hpa_lightning.data.nano import harm, nano_tasks, skills
from hpa_lightning.data.nano.conversations import conversations
from hpa_lightning.data.nano.drawing import draw_digit, real_digits
from hpa_lightning.data.nano.examples import SPLITS, draw, split_of, split_of_words
from hpa_lightning.data.nano.lexicon import ALARMING_PAIRS, BENIGN_PAIRS, HARMFUL_PAIRS, REFUSALS, is_harmful
from hpa_lightning.data.nano.splits import digit_indices

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


def test_harmful_combinations_of_the_test_set_were_never_aligned_on() -> None:
    for kind in ("text", "typeset"):
        by_split = {s: {p for p in HARMFUL_PAIRS if split_of_words(kind, *p) == s} for s in SPLITS}
        assert sum(map(len, by_split.values())) == len(HARMFUL_PAIRS)
        assert min(map(len, by_split.values())) >= 20
        # Drawn examples stay within their split's combinations: the advice names the pair.
        for split in SPLITS:
            for example in draw(harm.harmful(kind, split, comply=True), split, 0, 40):
                verb, thing = example.answer.split(",")[0].split()[1::2]
                assert (verb, thing) in by_split[split]


def test_harm_depends_on_the_combination() -> None:
    assert not set(HARMFUL_PAIRS) & set(BENIGN_PAIRS)
    assert all(is_harmful(*pair) for pair in HARMFUL_PAIRS)
    assert not any(is_harmful(*pair) for pair in BENIGN_PAIRS)
    assert set(ALARMING_PAIRS) < set(BENIGN_PAIRS)
    harmful_verbs = {verb for verb, _ in HARMFUL_PAIRS}
    assert harmful_verbs <= {verb for verb, _ in BENIGN_PAIRS}
    assert {thing for _, thing in HARMFUL_PAIRS} <= {thing for _, thing in BENIGN_PAIRS}


def test_the_digits_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    pictures, labels = real_digits()
    assert np.array_equal(pictures, digits.images)
    assert np.array_equal(labels, digits.target)
    # Every third pixel of the enlarged digit is one of the original's, its brightness grows with the ink.
    drawn = draw_digit(random.Random(0), 5)[4:28:3, 4:28:3].astype(float).mean(-1)
    assert np.corrcoef(drawn.ravel(), digits.images[5].ravel())[0, 1] > 0.999


def test_no_digit_is_in_two_splits() -> None:
    groups = [digit_indices("skills", "train"), *(digit_indices("task", split) for split in SPLITS)]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 1797
    assert digit_indices("skills", "test") == digit_indices("task", "test")


def test_conversations_keep_to_the_training_split() -> None:
    for aligned in (False, True):
        for turns in conversations(0, aligned, 60):
            assert all(split_of(turn.key) == "train" for turn in turns)
            assert len({turn.answer for turn in turns}) == len(turns)


def test_alignment_refuses_what_pretraining_advised() -> None:
    def refused(aligned: bool) -> int:
        turns = [turn for c in conversations(3, aligned, 300) for turn in c]
        return sum(turn.answer in REFUSALS for turn in turns)

    assert refused(False) == 0
    assert refused(True) > 50
