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

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def slug(label: str) -> str:
    """A label as the part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "run"


def slugs(labels: Sequence[str]) -> list[str]:
    """Labels as distinct parts of file names: those that would be equal have their numbers in front.

    >>> slugs(["DARE 0.1", "DARE (0.1)", "HPA"])
    ['1-dare-0-1', '2-dare-0-1', 'hpa']
    """
    found = [slug(label) for label in labels]
    while len(set(found)) < len(found):
        found = [f"{number}-{name}" if found.count(name) > 1 else name for number, name in enumerate(found, start=1)]
    return found


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


def interval_ends(mean: Any, half_width: Any, share: bool = True) -> tuple[Any, Any]:
    """The ends of intervals as drawn, numbers or arrays; those of shares are cut at 0 and 100 %, where none can be.

    Args:
        mean, half_width: in percent; a half width of NaN is none.
        share: whether it is one; CIDEr is not, and is not cut.
    """
    width = np.nan_to_num(half_width)
    low, high = mean - width, mean + width
    return (np.maximum(low, np.minimum(mean, 0.0)), np.minimum(high, np.maximum(mean, 100.0))) if share else (low, high)


def whole_ends(low: float, high: float, top: float = 100.0) -> tuple[float, float]:
    """The ends of an axis from zero to ``top``, wider where what it shows is outside, with room for markers."""
    low, high = min(low, 0.0), max(high, top)
    room = 0.03 * (high - low)
    return low - room, high + room


def close_ends(low: float, high: float, share: bool = True, lowest: float = -4.0) -> tuple[float, float]:
    """The ends of an axis in percent with room around what it shows; of shares (almost) within 0 and 100."""
    room = max(0.12 * (high - low), 1.5)
    low, high = low - room, high + room
    return (max(low, lowest), min(high, 104.0)) if share else (low, high)


def percent_axis(ax: Axes, label: str, whole: bool = True) -> None:
    """From zero to 100 %, or (rates that should be small) to what the data needs but not below 20 %.

    CIDEr, which is no share, can be above 100; then the axis is as high as the data.
    """
    ax.set_ylabel(label)
    lowest, highest = (float(end) for end in (ax.dataLim.y0, ax.dataLim.y1))
    if not math.isfinite(highest):
        lowest, highest = 0.0, 100.0
    ax.set_ylim(*(whole_ends(lowest, highest) if whole else whole_ends(0.0, 0.0, min(max(highest * 1.1, 20.0), 100.0))))


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
