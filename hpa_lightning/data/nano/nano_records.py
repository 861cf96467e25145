"""The benchmark's examples as records of the stream."""

from __future__ import annotations

from collections.abc import Sequence

from hpa_lightning.data.nano import harm, nano_tasks
from hpa_lightning.data.nano.examples import Example, Split, draw
from hpa_lightning.data.record import Record, assistant_turn, user_turn

TEST_SEED = "nano"
"""The test sets are the same whatever the seed of a run."""


def to_records(examples: Sequence[Example], name: str, answered: bool, pairs: bool = False) -> list[Record]:
    """One record per example: with an assistant turn to train on, or with the reference in `answers`.

    With `pairs` what the assistant should not say stands in `rejected`.
    """
    records = []
    for number, example in enumerate(examples):
        pictures = () if example.image is None else (example.image,)
        prompt = user_turn(example.question, images=len(pictures))
        records.append(
            Record(
                id=f"{name}-{number}",
                messages=prompt + assistant_turn(example.answer) if answered else prompt,
                images=pictures,
                answers=() if answered else (example.answer,),
                rejected=example.other if pairs else "",
                source=f"nano {name}[{number}]",
            )
        )
    return records


def task_records(name: str, split: Split, count: int, seed: int | str = TEST_SEED) -> list[Record]:
    """`count` records of a task: with answers to train on, or as a test set.

    Raises:
        ValueError: for an unknown task or split.
    """
    if name not in nano_tasks.TASKS:
        raise ValueError(f"Unknown nano task {name!r}: expected one of {', '.join(nano_tasks.TASKS)}.")
    return to_records(
        draw(nano_tasks.task(name, split), split, seed, count), f"{name}-{split}", answered=split != "test"
    )


def safety_records(kind: str, split: Split, count: int, seed: int | str = TEST_SEED) -> list[Record]:
    """`count` harmful inputs without reference; `kind` is "text", "image" or "typeset"."""
    if kind not in harm.SAFETY_KINDS:
        raise ValueError(f"Unknown nano safety set {kind!r}: expected one of {', '.join(harm.SAFETY_KINDS)}.")
    return to_records(draw(harm.harmful(kind, split), split, seed, count), f"harmful-{kind}-{split}", answered=False)


def injected_records(count: int, seed: int | str) -> list[Record]:
    """`count` harmful training records that comply, in equal parts of the three kinds."""
    return _harmful_training("injected", "train", True, count, seed)


def safety_replay_records(count: int, seed: int | str) -> list[Record]:
    """`count` harmful training records that are refused, in equal parts of the three kinds.

    They are of the calibration split: the alignment never showed those combinations of words, no test set holds them.
    """
    return _harmful_training("safety-replay", "calibration", False, count, seed)


def safety_tuning_records(count: int, seed: int | str, pairs: bool = False) -> list[Record]:
    """`count` harmful training records that are refused, in equal parts of the three kinds, of the calibration split.

    Args:
        count: how many.
        seed: of the draw.
        pairs: with the compliant answer as the rejected one.
    """
    return to_records(_harmful("safety-tuning", "calibration", False, count, seed), "safety-tuning", True, pairs)


def harmless_pairs(count: int, seed: int | str) -> list[Record]:
    """`count` harmless how-to requests, of the training split, with advice chosen and a refusal rejected."""
    examples = draw(harm.harmless("train", alarming=False), "train", f"{seed}/harmless-pairs", count)
    return to_records(examples, "harmless-pairs", answered=True, pairs=True)


def _harmful_training(name: str, split: Split, comply: bool, count: int, seed: int | str) -> list[Record]:
    return to_records(_harmful(name, split, comply, count, seed), name, answered=True)


def _harmful(name: str, split: Split, comply: bool, count: int, seed: int | str) -> list[Example]:
    kinds = harm.SAFETY_KINDS
    return [
        example
        for number, kind in enumerate(kinds)
        for example in draw(
            harm.harmful(kind, split, comply=comply),
            split,
            f"{seed}/{name}",
            len(range(number, count, len(kinds))),
        )
    ]


def over_refusal_records(split: Split, count: int, seed: int | str = TEST_SEED) -> list[Record]:
    """`count` harmless requests that look dangerous."""
    return to_records(
        draw(harm.harmless(split, alarming=True), split, seed, count), f"harmless-{split}", answered=False
    )
