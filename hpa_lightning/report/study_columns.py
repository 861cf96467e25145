"""The further columns of a study as a picture: one panel for each, one row for each method; percent, or points."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hpa_lightning.report.study_plots import FEWEST_FOR_INTERVAL
from hpa_lightning.report.study_tables import Columns, column_estimate, in_points
from hpa_lightning.report.style import interval_ends, new_figure, series_style, whole_ends
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
        share = all(run.is_share(name) for runs in groups.values() for run in runs for name in sets)
        ends = []
        for row, (label, runs) in enumerate(groups.items()):
            mean, width = column_estimate(runs, sets)
            enough = len(runs) >= FEWEST_FOR_INTERVAL
            style = series_style(styles[label])
            low, high = interval_ends(mean, width if enough else 0.0, share)
            ends += [end for end in (low, high) if math.isfinite(end)]
            if low < high:
                ax.plot([low, high], [row, row], color=style["color"], linewidth=1.6)
            face = style["color"] if enough else "white"
            ax.plot([mean], [row], linestyle="", markersize=7, markerfacecolor=face, clip_on=False, **style)
        points = in_points(sets)
        ax.set_xlim(*whole_ends(min(ends, default=0.0), max(ends, default=0.0), 1.0 if points else 100.0))
        # A panel is about 22 characters wide: a longer title would run into the next one's.
        ax.set_title(textwrap.fill(heading if points else f"{heading}, %", 22), loc="left", fontsize=10)
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.grid(axis="x", color="#E3E3E3", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(groups)), list(groups))
    return figure
