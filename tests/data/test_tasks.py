"""Tasks and what is mixed into them: settings and counts."""

from __future__ import annotations

import pytest

from hpa_lightning.data.tasks import replay_counts


@pytest.mark.parametrize(
    ("own", "memories", "counts"),
    [
        (80, [(8, None), (0, None)], [8, 0]),
        (80, [(8, 0.2), (0, None)], [20, 0]),  # 20 of 100
        (80, [(0, 0.2), (5, None)], [0, 5]),  # the first task has nothing to replay
        (60, [(4, 0.3), (9, 0.1)], [30, 10]),  # of 100
        (90, [(10, None), (6, 0.5)], [10, 100]),  # half of 200
        (10, [(4, 0.001)], [1]),
    ],
)
def test_counts(own: int, memories: list, counts: list[int]) -> None:
    assert replay_counts(own, memories) == counts
