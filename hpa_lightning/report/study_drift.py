"""Drift of the blocks over the methods of a study, and how well it tells the loss of safety."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpa_lightning.report.drift_plots import SHADE, safety_layers_of
from hpa_lightning.report.significance import estimate
from hpa_lightning.report.style import legend_beside, new_axes, new_figure, series_style
from hpa_lightning.results.events import DriftEvent, WeightDriftEvent
from hpa_lightning.results.run_results import RunResults

_WEIGHTS = "weights"


def profiles_of(run: RunResults) -> dict[str, tuple[float, ...]]:
    """After the last task: name of the prompts -> ``1 - cosine`` of every block; ``weights`` -> their drift."""
    found: dict[str, tuple[float, ...]] = {}
    for event in run.events(DriftEvent):
        if event.phase == "end" and event.step == len(run.tasks) - 1:
            found[event.set] = tuple(1 - cosine for cosine in event.cosine)
    for moved in run.events(WeightDriftEvent):
        if moved.phase == "end" and moved.step == len(run.tasks) - 1:
            found[_WEIGHTS] = moved.blocks
    return found


def plot_study_drift(groups: Mapping[str, Sequence[RunResults]], styles: Mapping[str, int]) -> Figure | None:
    """One panel for each set of prompts and one for the weights: the mean over seeds of every method, block by block.

    Args:
        groups: label -> runs of one method.
        styles: label -> number of its colour and marker.

    Returns:
        The figure, with 95 % confidence bands and the safety layers of the first run shaded; None without drift.
    """
    profiles = {
        label: found for label, runs in groups.items() if (found := [p for run in runs if (p := profiles_of(run))])
    }
    names = list(dict.fromkeys(name for of in profiles.values() for one in of for name in one))
    if not names:
        return None
    figure = new_figure(9.2, 1.0 + 2.4 * len(names))
    axes = new_axes(figure, len(names), sharex=True)
    for ax, name in zip(axes, names, strict=True):
        for label, of in profiles.items():
            rows = np.array([one[name] for one in of if name in one])
            if not len(rows):
                continue
            points = [estimate(list(column)) for column in rows.T]
            means, widths = (np.array([point[part] for point in points]) for part in (0, 1))
            style = series_style(styles[label])
            numbers = range(1, len(means) + 1)
            ax.plot(numbers, means, label=label, markersize=6, linewidth=1.6, **style)
            if np.isfinite(widths).all():
                ax.fill_between(numbers, means - widths, means + widths, color=style["color"], alpha=0.15, linewidth=0)
        ax.set_title("Weights" if name == _WEIGHTS else f"Hidden states on {name} prompts", loc="left", fontsize=11)
        ax.set_ylabel("‖W − W₀‖ / ‖W₀‖" if name == _WEIGHTS else "1 − cosine")
        ax.set_ylim(bottom=0)
    run = next(run for label in profiles for run in groups[label] if profiles_of(run))
    if (layers := safety_layers_of(run)) is not None:
        for ax in axes:
            ax.axvspan(layers[0] - 0.5, layers[1] + 0.5, color=SHADE, zorder=0)
    legend_beside(axes[0])
    axes[-1].set_xlabel("decoder block" + (" (shaded: safety layers of the model before)" if layers else ""))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
