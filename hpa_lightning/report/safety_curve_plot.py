"""The curve of safety and task scores inside tasks, of one run or of methods over seeds; in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hpa_lightning.report.run_tables import all_shares
from hpa_lightning.report.significance import estimate
from hpa_lightning.report.style import interval_ends, legend_beside, new_axes, new_figure, percent_axis, series_style
from hpa_lightning.results.events import CurveEvent
from hpa_lightning.results.run_results import RunResults

_PANELS = (
    ("task", "task score, %", "Tasks (higher is better)"),
    ("safety", "attack success, %", "Safety (lower is better)"),
    ("over_refusal", "refused, %", "Harmless requests refused (lower is better)"),
)


def curve_of(run: RunResults) -> dict[tuple[str, str], dict[int, float]]:
    """What ``SafetyCurve`` measured: (kind, set) -> optimizer step -> score, a fraction.

    The last point of a step counts: a task's end comes after its last step and shows what a method did there.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for event in run.events(CurveEvent):
        if event.score is not None:
            found.setdefault((event.kind, event.set), {})[event.optimizer_step] = event.score
    return found


def plot_safety_curve(groups: Mapping[str, Sequence[RunResults]]) -> Figure | None:
    """Scores against optimizer steps: tasks, safety, over-refusal, one below the other.

    Args:
        groups: label -> runs of one method; the mean over them, with 95 % confidence bands. Of one group every set has
            a line, of several each group has one: the mean over its sets.

    Returns:
        The figure; None if no run has such points.
    """
    curves = {label: found for label, runs in groups.items() if (found := [c for run in runs if (c := curve_of(run))])}
    if not curves:
        return None
    kinds = {kind for of in curves.values() for curve in of for kind, _ in curve}
    panels = [panel for panel in _PANELS if panel[0] in kinds]
    figure = new_figure(9.2, 0.6 + 2.6 * len(panels))
    axes = new_axes(figure, len(panels), sharex=True)
    for ax, (kind, label, title) in zip(axes, panels, strict=True):
        share = all_shares([run for runs in groups.values() for run in runs], kind)
        for index, (name, by_step) in enumerate(_lines(curves, kind).items()):
            steps = sorted(by_step)
            points = [estimate([100 * value for value in by_step[step]]) for step in steps]
            means, widths = (np.array([point[part] for point in points]) for part in (0, 1))
            style = series_style(index)
            ax.plot(steps, means, label=name, markersize=5, linewidth=1.6, **style)
            if np.nan_to_num(widths).any():
                low, high = interval_ends(means, widths, share)
                ax.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        percent_axis(ax, label, whole=kind == "task")
        ax.set_title(title, loc="left", fontsize=11)
        legend_beside(ax)
    axes[-1].set_xlabel("optimizer steps")
    return figure


def _lines(
    curves: Mapping[str, Sequence[Mapping[tuple[str, str], Mapping[int, float]]]], kind: str
) -> dict[str, dict[int, list[float]]]:
    """Line -> step -> one value for each run."""
    found: dict[str, dict[int, list[float]]] = {}
    for label, runs in curves.items():
        for curve in runs:
            sets = {name: points for (of, name), points in curve.items() if of == kind}
            if len(curves) > 1 and sets:
                shared = set.intersection(*(set(points) for points in sets.values()))
                mean = {step: float(np.mean([points[step] for points in sets.values()])) for step in shared}
                sets = {label: mean}
            for name, points in sets.items():
                for step, value in points.items():
                    found.setdefault(name, {}).setdefault(step, []).append(value)
    return found
