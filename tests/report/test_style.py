"""How plots look: series that can be told apart, axes that hold the data."""

from __future__ import annotations

import pytest

from hpa_lightning.report.style import COLOURS, new_axes, new_figure, percent_axis, series_style, slug


def test_many_series_differ_in_colour_or_marker() -> None:
    styles = [tuple(series_style(index).values()) for index in range(8 * len(COLOURS))]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    ("values", "whole", "top"),
    [([3.0], True, 100.0), ([130.0], True, 130.0), ([3.0], False, 20.0), ([50.0], False, 55.0)],
)
def test_the_axis_starts_at_zero_and_holds_what_is_drawn(values: list[float], whole: bool, top: float) -> None:
    (ax,) = new_axes(new_figure(4, 3))
    ax.plot(range(len(values)), values)
    percent_axis(ax, "score", whole)
    low, high = ax.get_ylim()
    assert high == pytest.approx(1.03 * top) and low == pytest.approx(-0.03 * top)
    (empty,) = new_axes(new_figure(4, 3))
    percent_axis(empty, "score")
    assert empty.get_ylim()[1] == pytest.approx(103.0)


def test_labels_become_parts_of_file_names() -> None:
    assert [slug(label) for label in ("HPA (10 %)", "Ω", "a//b")] == ["hpa-10", "run", "a-b"]
