"""The picture of two studies, read back from the drawn artists."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from hpa_lightning.report.agreement_measures import MEASURES, Compared
from hpa_lightning.report.agreement_plot import plot_agreement
from hpa_lightning.report.rank_agreement import Agreement


def test_a_labelled_point_for_each_method_with_its_seeds() -> None:
    draw = np.random.default_rng(0)
    titles = tuple(f"Method number {n}" for n in range(12))
    sides = [tuple(tuple(draw.uniform(0, 60, 3)) for _ in titles) for _ in range(2)]
    sides[1] = (sides[1][0][:1], *sides[1][1:])
    found = Agreement(12, 0.5, -0.1, 0.9, 0.02, False, 0.0)
    chosen = [measure for measure in MEASURES if measure.name in ("AP", "MASR", "BWT")]
    figures = [(Compared(measure, titles, *sides, ()), found) for measure in chosen]
    figure = plot_agreement(figures, "old", "new", {title: n for n, title in enumerate(titles)})
    performance, transfer, attacks, empty = figure.axes
    assert not empty.get_visible() and transfer.get_ylabel() == "new" and transfer.get_xlabel() == "old"
    assert performance.get_title(loc="left") == "AP, % (higher is better)\ntau 0.50 (-0.10 to 0.90), 12 methods"
    assert attacks.xaxis_inverted() and attacks.yaxis_inverted() and not performance.xaxis_inverted()
    points = {line.get_label(): line for line in performance.lines if line.get_label() in titles}
    assert list(points[titles[3]].get_xydata()[0]) == pytest.approx([np.mean(sides[0][3]), np.mean(sides[1][3])])
    assert [title for title, line in points.items() if line.get_markerfacecolor() == "white"] == [titles[0]]
    reach = [line for line in performance.lines if list(line.get_xdata()) == [min(sides[0][3]), max(sides[0][3])]]
    assert len(reach) == 1 and np.ptp(reach[0].get_ydata()) == 0
    for ax in (performance, attacks):
        boxes = [text.get_window_extent() for text in ax.texts]
        inside = ax.get_window_extent()
        assert {text.get_text() for text in ax.texts} == set(titles)
        assert not [two for two in combinations(boxes, 2) if two[0].padded(-1).overlaps(two[1].padded(-1))]
        assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_no_interval_is_a_dash() -> None:
    values = ((1.0,), (2.0,), (3.0,), (4.0,))
    found = Agreement(4, 1.0, math.nan, math.nan, 2 / 24, False, 0.0)
    figure = plot_agreement(
        [(Compared(MEASURES[0], tuple("ABCD"), values, values, ()), found)],
        "a",
        "b",
        dict(zip("ABCD", range(4), strict=True)),
    )
    (ax,) = figure.axes
    assert ax.get_title(loc="left").endswith("tau 1.00 (–), 4 methods")
