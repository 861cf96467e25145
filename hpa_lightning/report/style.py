"""How every plot looks, with matplotlib's object-oriented interface; no global state of pyplot is touched.

Colours are Okabe and Ito's palette and cividis, which colour-blind readers can distinguish; series differ by
marker as well. All values are in percent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from os import PathLike
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def slug(label: str) -> str:
    """A label as the part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "run"


def save_figure(figure: Figure, path: str | PathLike[str], dpi: int = 144) -> None:
    """Writes a figure as PNG on a white ground."""
    figure.savefig(path, format="png", dpi=dpi, facecolor="white")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def new_axes(figure: Figure, rows: int = 1, **kwargs: object) -> list[Axes]:
    """Axes one below the other, with horizontal grid lines."""
    axes = figure.subplots(rows, squeeze=False, **kwargs)[:, 0]  # type: ignore[call-overload]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#E3E3E3", linewidth=0.8)
        ax.set_axisbelow(True)
    return list(axes)


def series_style(index: int) -> dict[str, Any]:
    """Colour and marker of a series; beyond eight the colours repeat with other markers."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def percent_axis(ax: Axes, label: str, whole: bool = True) -> None:
    """From zero to 100 %, or (rates that should be small) to what the data needs but not below 20 %.

    CIDEr, which is no share, can be above 100; then the axis is as high as the data.
    """
    ax.set_ylabel(label)
    highest = float(ax.dataLim.y1) if math.isfinite(ax.dataLim.y1) else 100.0
    top = max(highest, 100.0) if whole else min(max(highest * 1.1, 20.0), 100.0)
    ax.set_ylim(-0.03 * top, 1.03 * top)


def legend_beside(ax: Axes) -> None:
    """The legend, to the right of the axes."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0, fontsize=9)


def step_axis(ax: Axes, steps: Sequence[int], names: Sequence[str]) -> None:
    """The steps of a stream along x, under their names."""
    slanted = max(map(len, names)) > 6
    ax.set_xticks(
        list(steps),
        names,
        rotation=25 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    ax.set_xlabel("model after learning")
    ax.set_xlim(min(steps) - 0.3, max(steps) + 0.3)
