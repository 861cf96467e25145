"""Two studies in one picture: each method's figure on the one against that on the other; in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hpa_lightning.report.agreement_measures import Compared
from hpa_lightning.report.rank_agreement import Agreement, means_of
from hpa_lightning.report.study_plots import label_points
from hpa_lightning.report.style import new_figure, series_style
from hpa_lightning.table import MISSING

_COLUMNS = 2


def plot_agreement(
    figures: Sequence[tuple[Compared, Agreement]], first: str, second: str, styles: Mapping[str, int]
) -> Figure:
    """One panel for each figure, a labelled point for each method.

    Thin lines reach from the lowest to the highest seed. Hollow: one seed on a side. The better end of both axes is the
    upper right one: where lower is better the axes are turned round.

    Args:
        figures: what is compared, and how far it agrees.
        first, second: names of the axes.
        styles: method -> number of its colour and marker.
    """
    rows = math.ceil(len(figures) / _COLUMNS)
    figure = new_figure(7.0 * min(_COLUMNS, len(figures)), 0.3 + 5.0 * rows)
    axes = figure.subplots(rows, min(_COLUMNS, len(figures)), squeeze=False).ravel()
    drawn = []
    for ax, (item, found) in zip(axes, figures, strict=False):
        points: list[tuple[float, float, str]] = []
        bars: list[tuple[float, float, float, float]] = []
        centres = zip(item.titles, means_of(item.first), means_of(item.second), item.first, item.second, strict=True)
        for title, x, y, xs, ys in centres:
            style = series_style(styles[title])
            face = "white" if min(len(xs), len(ys)) == 1 else style["color"]
            ax.plot([min(xs), max(xs)], [y, y], color=style["color"], linewidth=1, alpha=0.5)
            ax.plot([x, x], [min(ys), max(ys)], color=style["color"], linewidth=1, alpha=0.5)
            ax.plot([x], [y], linestyle="", markersize=8, markerfacecolor=face, label=title, **style)
            points.append((float(x), float(y), title))
            bars += [(min(xs), max(xs), float(y), float(y)), (float(x), float(x), min(ys), max(ys))]
        better = "higher is better" if item.measure.higher_is_better else "lower is better, axes turned round"
        between = MISSING if math.isnan(found.low) else f"{found.low:.2f} to {found.high:.2f}"
        tau = f"tau {found.tau:.2f} ({between}), {found.methods} methods"
        ax.set_title(f"{item.measure.name}, % ({better})\n{tau}", loc="left", fontsize=10.5)
        ax.set_xlabel(first)
        ax.set_ylabel(second)
        ax.grid(color="#E3E3E3", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(0.16)
        if not item.measure.higher_is_better:
            ax.invert_xaxis()
            ax.invert_yaxis()
        drawn.append((ax, points, bars))
    for ax in axes[len(figures) :]:
        ax.set_visible(False)
    for ax, points, bars in drawn:  # after all panels have got their places
        label_points(figure, ax, points, bars)
    return figure
