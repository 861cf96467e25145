"""The picture of a merging front."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpa_lightning.report.front_page import plot_front

# Safety and helpfulness of the embedded benchmark's models, percent: the last ratios lie on one another.
PLACES = {
    "task": (19.0, 57.8),
    "0.1": (36.3, 52.2),
    "0.3": (81.3, 26.8),
    "0.6": (98.7, 3.3),
    "0.7": (99.7, 1.5),
    "0.8": (99.7, 0.2),
    "0.9": (99.7, 0.0),
    "safety": (99.7, 0.0),
}


def front(picked: str) -> Any:
    def estimate(percent: float) -> Any:
        return SimpleNamespace(value=percent / 100, low=percent / 100, high=percent / 100)

    points = [
        SimpleNamespace(
            name=name,
            comparisons={} if name in ("task", "safety") else {"task": None},
            safety=estimate(safety),
            helpfulness=estimate(helpfulness),
            on_front=True,
        )
        for name, (safety, helpfulness) in PLACES.items()
    ]
    return SimpleNamespace(points=points, picked=picked, budget=0.2)


@pytest.mark.parametrize(
    ("picked", "expected"),
    [
        ("0.3", ["0.1", "0.3 (picked)", "0.6–0.7", "0.8–0.9"]),
        ("0.8", ["0.1", "0.3", "0.6–0.7", "0.8 (picked)", "0.9"]),
    ],
)
def test_ratios_that_lie_on_one_another_share_a_label(picked: str, expected: list[str]) -> None:
    figure = plot_front(front(picked))
    assert [text.get_text() for text in figure.axes[0].texts] == ["task-tuned", "safety-tuned", *expected]


def test_labels_do_not_overlap() -> None:
    figure = plot_front(front("0.3"))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
