"""Which of the real digits belong to pretraining and which to the task's splits."""

from __future__ import annotations

import random
from functools import cache

from hpa_lightning.data.nano.examples import Split

_COUNTS = {"skills": 900, "train": 450, "calibration": 128, "test": 319}


@cache
def digit_indices(use: str, split: Split) -> tuple[int, ...]:
    """Indices into `drawing.real_digits`.

    The 1797 digits are shuffled once: 900 pretrain the model, 450 tune it in the digits task, 128 are for
    calibration, 319 for tests.

    Args:
        use: "skills" or "task"; they share the calibration and test digits, not those they train on.
        split: "train", "calibration" or "test".
    """
    order = list(range(sum(_COUNTS.values())))
    random.Random("nano digits").shuffle(order)
    wanted = "skills" if (use, split) == ("skills", "train") else split
    start = 0
    for name, count in _COUNTS.items():
        if name == wanted:
            break
        start += count
    return tuple(order[start : start + count])
