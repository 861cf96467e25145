"""Plots of many methods over seeds: trade-offs with labelled points, and sweeps over a setting; in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product, takewhile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from hpa_lightning.report.run_tables import all_shares
from hpa_lightning.report.significance import estimate
from hpa_lightning.report.style import (
    close_ends,
    interval_ends,
    legend_beside,
    new_axes,
    new_figure,
    percent_axis,
    series_style,
)
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Estimate

#: Key in `RunResults.summary` -> how an axis calls it and which way is better.
_AXIS_LABELS = {
    "MASR": ("mean attack success rate (MASR), %   ← safer", "MASR of the aligned model"),
    "over_refusal": ("over-refusal, % (square-root scale)   ← more helpful", "over-refusal of the aligned model"),
}

#: Below this many runs an interval is too wide to be informative, and none is drawn.
FEWEST_FOR_INTERVAL = 3

_ANGLES = [number * math.pi / 12 for number in range(24)]


def final_estimate(runs: Sequence[RunResults], key: str) -> Estimate:
    """Mean and 95 % interval of one figure of `RunResults.summary` after the last task, percent."""
    return estimate([100 * run.summary(len(run.tasks) - 1)[key] for run in runs])


def common_title(titles: Sequence[str]) -> str:
    """What the titles of a grid's points begin with, up to a comma; the title itself if there is one.

    >>> common_title(["Safe Delta, s = 0.1, 15 %", "Safe Delta, s = 10, 0 %"]), common_title(["TIES, density 0.3"])
    ('Safe Delta', 'TIES, density 0.3')
    """
    if len(titles) == 1:
        return titles[0]
    parts = zip(*(title.split(", ") for title in titles), strict=False)
    shared = ", ".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))
    return shared or titles[0]


def plot_against_performance(
    groups: Mapping[str, Sequence[RunResults]],
    key: str,
    styles: Mapping[str, int] | None = None,
    families: Mapping[str, str] | None = None,
    aligned_starts: Sequence[RunResults] | None = None,
) -> Figure | None:
    """AP against MASR or over-refusal after the last task: a labelled point per group, 95 % intervals both ways.

    Args:
        groups: label -> runs.
        key: ``"MASR"`` or ``"over_refusal"``.
        styles: label -> number of its colour and marker; by default in the order of ``groups``.
        families: label -> name of its family. Points of one family look alike and are joined by a line, and the name
            stands once, at its upper left point.
        aligned_starts: the runs that start with the aligned model, whose mean before the first task is a dashed line;
            by default all.

    Returns:
        The figure; None if no group has both values.
    """
    figure = new_figure(9.2, 5.6)
    (ax,) = new_axes(figure)
    ax.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    points: list[tuple[float, float, str]] = []
    bars: list[tuple[float, float, float, float]] = []
    if families is not None:
        numbers = {family: number for number, family in enumerate(dict.fromkeys(families.values()))}
        styles = {label: numbers[family] for label, family in families.items()}
    share = all_shares([run for runs in groups.values() for run in runs])
    for index, (label, runs) in enumerate(groups.items()):
        x, y = final_estimate(runs, key), final_estimate(runs, "AP")
        if not math.isfinite(x.mean + y.mean):
            continue
        style = series_style(index if styles is None else styles[label])
        if len(runs) < FEWEST_FOR_INTERVAL:
            # The interval of two seeds is twelve standard errors wide to either side.
            (left, right), (low, high) = (x.mean, x.mean), (y.mean, y.mean)
            ax.errorbar(x.mean, y.mean, markersize=8, markerfacecolor="white", label=label, **style)
            label = label if families is not None else f"{label} (n = {len(runs)})"
        else:
            (left, right), (low, high) = interval_ends(*x), interval_ends(*y, share)
            reach_x, reach_y = [[x.mean - left], [right - x.mean]], [[y.mean - low], [high - y.mean]]
            drawn = ax.errorbar(x.mean, y.mean, reach_y, reach_x, markersize=8, elinewidth=1, label=label, **style)
            for bar in drawn.lines[2]:
                bar.set_alpha(0.45)  # behind the points and their names, where there are many
        points.append((x.mean, y.mean, label))
        bars += [(left, right, y.mean, y.mean), (x.mean, x.mean, low, high)]
    if not points:
        return None
    if families is not None:
        points = _join_families(ax, points, families, styles or {})
    axis_label, aligned_label = _AXIS_LABELS[key]
    starts = [run for runs in groups.values() for run in runs] if aligned_starts is None else aligned_starts
    aligned = estimate([100 * run.summary(-1)[key] for run in starts if -1 in run.steps]).mean
    if not math.isnan(aligned):
        ax.axvline(aligned, color="#555555", linestyle="--", linewidth=1)
        ax.annotate(
            aligned_label,
            (aligned, 1.0),
            (-4, 3),
            xycoords=ax.get_xaxis_transform(),
            textcoords="offset points",
            color="#555555",
            fontsize=8.5,
        )
    lefts, rights, lows, highs = zip(*bars, strict=True)
    shown = [value for value in (*lefts, *rights, aligned) if not math.isnan(value)]
    ax.set_ylim(*close_ends(min(lows), max(highs), share))
    if key == "over_refusal":
        # Most methods lie near zero: a square-root scale gives them room.
        ax.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
        ax.set_xticks([0, 1, 5, 10, 20, 40, 60, 80, 100])
    ax.set_xlim(*close_ends(min(shown), max(shown), lowest=-1.0 if key == "over_refusal" else -4.0))
    ax.set_xlabel(axis_label)
    ax.set_ylabel("average performance (AP), %   better →")
    if not math.isnan(aligned):
        bars.append((aligned, aligned, *ax.get_ylim()))  # the dashed line is an obstacle to labels too
    label_points(figure, ax, points, bars)
    return figure


def _join_families(
    ax: Axes, points: Sequence[tuple[float, float, str]], families: Mapping[str, str], styles: Mapping[str, int]
) -> list[tuple[float, float, str]]:
    """Draw a line through the points of each family; return one labelled point of each and the others without label."""
    members: dict[str, list[tuple[float, float, str]]] = {}
    for point in points:
        members.setdefault(families[point[2]], []).append(point)
    labelled: list[tuple[float, float, str]] = []
    for family, of in members.items():
        xs, ys, labels = zip(*of, strict=True)
        colour = series_style(styles[labels[0]])["color"]
        ax.plot(xs, ys, color=colour, linewidth=1, alpha=0.45, zorder=1.8)
        named = max(range(len(of)), key=lambda number: ys[number] - xs[number])
        labelled += [(x, y, family if number == named else "") for number, (x, y, _) in enumerate(of)]
    return labelled


def label_points(
    figure: Figure,
    ax: Axes,
    points: Sequence[tuple[float, float, str]],
    bars: Sequence[tuple[float, float, float, float]],
) -> None:
    """Write the labels beside their points where they cover the least of points, intervals and other labels.

    Args:
        figure: settled but for the labels.
        ax: with its final limits.
        points: x, y and label; a point without a label is an obstacle alone.
        bars: left, right, low and high end of each interval that is drawn.
    """
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # settles the layout
    pixels = figure.dpi / 72  # of one point (1/72 inch)
    centres = ax.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox([centre - 6 * pixels, centre + 6 * pixels]) for centre in centres]
    weights = [12.0] * len(taken)
    for left, right, low, high in bars:
        corners = np.sort(ax.transData.transform([(left, low), (right, high)]), axis=0)  # an axis may be turned round
        taken.append(Bbox(corners).padded(2 * pixels))
        weights.append(4.0)
    inside = ax.get_window_extent()
    # Points in a crowd have the least choice: they choose first.
    crowd = [float(np.sum(np.hypot(*(centres - centre).T) < 90 * pixels)) for centre in centres]
    for index in sorted(range(len(points)), key=lambda index: -crowd[index]):
        x, y, label = points[index]
        if not label:
            continue
        text = ax.annotate(label, (x, y), (0, 0), textcoords="offset points", fontsize=8.5, va="center", zorder=5)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        text.set_in_layout(False)
        size = text.get_window_extent(canvas.get_renderer())
        best: tuple[float, Bbox, float, float, float] | None = None
        for radius, angle in product((11.0, 14.0, 17.0, 21.0, 26.0, 33.0, 42.0, 53.0, 67.0, 85.0), _ANGLES):
            dx, dy = radius * math.cos(angle) * pixels, radius * math.sin(angle) * pixels
            # The label's near edge lies at the radius; above and below it slides along the point.
            shift = (math.cos(angle) - 1) / 2 * size.width
            left, bottom = centres[index] + (dx + shift, dy - size.height / 2)
            box = Bbox.from_bounds(left, bottom, size.width, size.height)
            covered = float(_shared_areas(box, taken) @ weights)
            outside = box.width * box.height - float(_shared_areas(box, [inside])[0])
            cost = (covered + 20 * outside) / pixels**2 + 4 * radius + 4 * abs(math.sin(angle))
            if best is None or cost < best[0]:
                best = (cost, box, dx + shift, dy, radius)
        assert best is not None
        _, box, dx, dy, radius = best
        text.set_position((dx / pixels, dy / pixels))
        if radius > 17:
            nearest = np.clip(centres[index], box.min, box.max)
            line = ax.transData.inverted().transform([centres[index], nearest])
            ax.plot(*line.T, color="#999999", linewidth=0.7, zorder=1.5, scalex=False, scaley=False)
        taken.append(box.padded(1.5 * pixels))
        weights.append(20.0)


def _shared_areas(box: Bbox, others: Sequence[Bbox]) -> np.ndarray:
    """Area that a box shares with each of the others, shape ``(others,)``."""
    ends = np.array([other.extents for other in others])
    sides = np.minimum(box.max, ends[:, 2:]) - np.maximum(box.min, ends[:, :2])
    found: np.ndarray = sides.clip(min=0.0).prod(axis=1)
    return found


def plot_sweep(
    series: Mapping[str, Mapping[float, Sequence[RunResults]]],
    x_label: str,
    lines: Mapping[str, Sequence[RunResults]] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """AP (above), MASR and over-refusal (below) after the last task against a setting, with 95 % intervals.

    Args:
        series: label -> value of the setting -> runs.
        x_label: what the setting is, with its unit.
        lines: label -> runs that do not have the setting: a horizontal line with its interval as a band.
        logarithmic: of the setting's axis.
    """
    figure = new_figure(9.2, 7.4)
    axes = new_axes(figure, 3, sharex=True)
    panels = (
        ("AP", "AP, %", "Average performance (higher is better)"),
        ("MASR", "MASR, %", "Mean attack success rate (lower is better)"),
        ("over_refusal", "over-refusal, %", "Over-refusal (lower is better)"),
    )
    drawn = [runs for by_value in series.values() for runs in by_value.values()] + [*(lines or {}).values()]
    performance = all_shares([run for runs in drawn for run in runs])
    for ax, (key, label, title) in zip(axes, panels, strict=True):
        share = performance or key != "AP"
        for index, (name, by_value) in enumerate(series.items()):
            values = sorted(by_value)
            estimates = [final_estimate(by_value[value], key) for value in values]
            means, widths = np.array(estimates).T
            low, high = interval_ends(means, widths, share)
            ax.errorbar(values, means, [means - low, high - means], capsize=3, label=name, **series_style(index))
        for offset, (name, runs) in enumerate((lines or {}).items(), start=len(series)):
            mean, half_width = final_estimate(runs, key)
            colour = series_style(offset)["color"]
            ax.axhline(mean, color=colour, linestyle=("--", ":", "-.")[offset % 3], linewidth=1.6, label=name)
            if not math.isnan(half_width):
                ax.axhspan(*interval_ends(mean, half_width, share), color=colour, alpha=0.12, linewidth=0)
        percent_axis(ax, label, whole=key == "AP")
        ax.set_title(title, loc="left", fontsize=11)
    if logarithmic:
        axes[-1].set_xscale("log")
    axes[-1].set_xlabel(x_label)
    legend_beside(axes[0])
    return figure
