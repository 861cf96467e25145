"""The further columns of a study as a picture: one panel for each, one row for each method; in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hpa_lightning.report.study_plots import FEWEST_FOR_INTERVAL
from hpa_lightning.report.study_tables import Columns, column_estimate
from hpa_lightning.report.style import new_figure, series_style
from hpa_lightning.results.run_results import RunResults


def plot_columns(
    groups: Mapping[str, Sequence[RunResults]], columns: Columns, styles: Mapping[str, int]
) -> Figure | None:
    """Mean score of the sets of every column after the last task, with 95 % intervals.

    Args:
        groups: label -> runs of one method, from top to bottom.
        columns: heading -> evaluation sets.
        styles: label -> number of its colour and marker.

    Returns:
        The figure; None without columns.
    """
    if not columns:
        return None
    figure = new_figure(3.0 + 2.1 * len(columns), 1.0 + 0.34 * len(groups))
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for ax, (heading, sets) in zip(axes, columns.items(), strict=True):
        for row, (label, runs) in enumerate(groups.items()):
            mean, width = column_estimate(runs, sets)
            enough = len(runs) >= FEWEST_FOR_INTERVAL
            style = series_style(styles[label])
            if enough and np.isfinite(width):
                low, high = max(0.0, mean - width), min(100.0, mean + width)
                ax.plot([low, high], [row, row], color=style["color"], linewidth=1.6)
            face = style["color"] if enough else "white"
            ax.plot([mean], [row], linestyle="", markersize=7, markerfacecolor=face, **style)
        ax.set_xlim(-3, 103)
        ax.set_title(f"{heading}, %", loc="left", fontsize=10)
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.grid(axis="x", color="#E3E3E3", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(groups)), list(groups))
    return figure
