"""The benchmark's examples as records of the stream."""

from __future__ import annotations

from collections.abc import Sequence

from hpa_lightning.data.nano import safety, tasks
from hpa_lightning.data.nano.examples import Example, Split, draw
from hpa_lightning.data.records import Record, assistant_turn, user_turn

TEST_SEED = "nano"
"""The test sets are the same whatever the seed of a run."""


def to_records(examples: Sequence[Example], name: str, answered: bool) -> list[Record]:
    """One record per example: with an assistant turn to train on, or with the reference in `answers`."""
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
                source=f"nano {name}[{number}]",
            )
        )
    return records


def task_records(name: str, split: Split, count: int, seed: int | str = TEST_SEED) -> list[Record]:
    """`count` records of a task: with answers to train on, or as a test set.

    Raises:
        ValueError: for an unknown task or split.
    """
    if name not in tasks.TASKS:
        raise ValueError(f"Unknown nano task {name!r}: expected one of {', '.join(tasks.TASKS)}.")
    return to_records(draw(tasks.task(name, split), split, seed, count), f"{name}-{split}", answered=split != "test")


def safety_records(kind: str, split: Split, count: int, seed: int | str = TEST_SEED) -> list[Record]:
    """`count` harmful inputs without reference; `kind` is "text", "image" or "typeset"."""
    if kind not in safety.SAFETY_KINDS:
        raise ValueError(f"Unknown nano safety set {kind!r}: expected one of {', '.join(safety.SAFETY_KINDS)}.")
    return to_records(draw(safety.harmful(kind, split), split, seed, count), f"harmful-{kind}-{split}", answered=False)


def injected_records(count: int, seed: int | str) -> list[Record]:
    """`count` harmful training records that comply, in equal parts of the three kinds."""
    kinds = safety.SAFETY_KINDS
    drawn = [
        example
        for number, kind in enumerate(kinds)
        for example in draw(
            safety.harmful(kind, "train", comply=True),
            "train",
            f"{seed}/injected",
            len(range(number, count, len(kinds))),
        )
    ]
    return to_records(drawn, "injected", answered=True)


def over_refusal_records(split: Split, count: int, seed: int | str = TEST_SEED) -> list[Record]:
    """`count` harmless requests that look dangerous."""
    return to_records(
        draw(safety.harmless(split, alarming=True), split, seed, count), f"harmless-{split}", answered=False
    )
