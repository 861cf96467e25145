"""One question about one picture, and the split it belongs to."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")


@dataclass(frozen=True)
class Example:
    """A prompt with its answer.

    Attributes:
        image: uint8 (32, 32, 3), or None for a text-only prompt.
        question: what the user asks.
        answer: what the assistant should say.
        skill: the generator it comes from.
        other: of a how-to request, what the assistant should not say: advice where it refuses, or a refusal.
    """

    image: np.ndarray | None
    question: str
    answer: str
    skill: str = ""
    other: str = ""

    @property
    def key(self) -> int:
        """CRC-32 of the prompt (picture and question): equal prompts have equal keys."""
        return zlib.crc32(b"" if self.image is None else self.image.tobytes(), zlib.crc32(self.question.encode()))


def split_of(key: int) -> Split:
    """The split of a key: 80 % train, 10 % calibration, 10 % test.

    The split depends on the content and on nothing else, so that no seed can put a prompt into two splits.
    """
    # A multiplicative hash: the low bits of similar keys would otherwise be alike.
    bucket = (key * 2654435761 % 2**32) * 100 >> 32
    return "train" if bucket < 80 else "calibration" if bucket < 90 else "test"


def split_of_words(*words: str) -> Split:
    """The split of a combination of words."""
    return split_of(zlib.crc32(" ".join(words).encode()))


def draw(generate: Callable[[random.Random], Example], split: Split, seed: int | str, count: int) -> list[Example]:
    """`count` different examples of `split`, in an order that `seed` determines.

    Raises:
        ValueError: if the generator does not have that many different prompts.
    """
    return list(_distinct(generate, split, random.Random(f"{seed}/{split}"), count))


def _distinct(
    generate: Callable[[random.Random], Example], split: Split, rng: random.Random, count: int
) -> Iterator[Example]:
    seen: set[int] = set()
    misses = 0
    while len(seen) < count:
        example = generate(rng)
        if split_of(example.key) == split and example.key not in seen:
            seen.add(example.key)
            misses = 0
            yield example
        else:
            misses += 1
            if misses > 20_000:
                raise ValueError(f"Only {len(seen)} different {split!r} examples could be drawn, asked for {count}.")
