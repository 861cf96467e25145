"""Plots of the drift that ``LayerDrift`` measured: hidden states and weights of every decoder block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpa_lightning.report.run_tables import step_name
from hpa_lightning.report.style import COLOURS, legend_beside, new_axes, new_figure, series_style
from hpa_lightning.results.events import DriftEvent, DriftPromptsEvent, RetentionEvent, WeightDriftEvent
from hpa_lightning.results.run_results import RunResults

SHADE = "#F5E6C8"


def plot_drift(run: RunResults) -> Figure | None:
    """Drift of every block after every task: one panel for each set of prompts, one for the weights.

    Each line is ``1 - cosine`` after a task; the safety layers of the first model are shaded. Where HPA kept columns,
    the last panel shows their share by block, the mean over the tasks. None if the run recorded no drift.
    """
    events = [event for event in run.events(DriftEvent) if event.phase == "end"]
    if not events:
        return None
    sets = list(dict.fromkeys(event.set for event in events))
    weights = [event for event in run.events(WeightDriftEvent) if event.phase == "end"]
    kept = kept_share(run.events(RetentionEvent), len(events[0].cosine))
    panels = len(sets) + bool(weights) + (kept is not None)
    figure = new_figure(9.2, 1.0 + 2.4 * panels)
    axes = new_axes(figure, panels, sharex=True)
    steps = sorted({event.step for event in events})
    styles = {step: series_style(index) for index, step in enumerate(steps)}
    for ax, name in zip(axes, sets, strict=False):
        for event in events:
            if event.set == name:
                label = f"after {step_name(run, event.step)}"
                _line(ax, [1 - cosine for cosine in event.cosine], label, styles[event.step])
        ax.set_title(f"Hidden states on {name} prompts", loc="left", fontsize=11)
        ax.set_ylabel("1 − cosine")
    if weights:
        for moved in weights:
            _line(axes[len(sets)], moved.blocks, f"after {step_name(run, moved.step)}", styles[moved.step])
        axes[len(sets)].set_title("Weights", loc="left", fontsize=11)
        axes[len(sets)].set_ylabel("‖W − W₀‖ / ‖W₀‖")
    if kept is not None:
        axes[-1].bar(range(1, len(kept) + 1), kept, color=COLOURS[0], width=0.7)
        axes[-1].set_title("Columns that HPA kept", loc="left", fontsize=11)
        axes[-1].set_ylabel("columns, %")
    _shade(axes, run)
    legend_beside(axes[0])
    axes[-1].set_xlabel("decoder block (shaded: safety layers of the model before the first task)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        ax.set_ylim(bottom=0)
    return figure


def safety_layers_of(run: RunResults) -> tuple[int, int] | None:
    """First and last safety layer that the run's first model showed, counted from 1; None if it showed none."""
    for event in run.events(DriftPromptsEvent):
        if event.first is not None and event.last is not None:
            return event.first, event.last
    return None


def _line(ax: Axes, values: object, label: str, style: dict[str, object]) -> None:
    heights = np.asarray(values, dtype=np.float64)
    ax.plot(range(1, len(heights) + 1), heights, label=label, linewidth=1.6, markersize=6, **style)  # type: ignore[arg-type]


def _shade(axes: list[Axes], run: RunResults) -> None:
    if (found := safety_layers_of(run)) is not None:
        for ax in axes:
            ax.axvspan(found[0] - 0.5, found[1] + 0.5, color=SHADE, zorder=0)


def kept_share(retained: Sequence[RetentionEvent], blocks: int) -> list[float] | None:
    """Percent of each block's columns that HPA retained, mean over the tasks; None without any."""
    events = [event for event in retained if event.layer is not None]
    if not events:
        return None
    shares = []
    for block in range(1, blocks + 1):
        chosen = [event for event in events if event.layer == block]
        columns = sum(event.columns for event in chosen)
        shares.append(100 * sum(event.retained for event in chosen) / columns if columns else 0.0)
    return shares
