"""Plots of one run and of several compared, in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from hpa_lightning.report.run_tables import all_shares, by_method, step_name
from hpa_lightning.report.significance import estimate
from hpa_lightning.report.style import (
    COLOURS,
    interval_ends,
    legend_beside,
    new_axes,
    new_figure,
    percent_axis,
    series_style,
    step_axis,
)
from hpa_lightning.results.events import RetentionEvent
from hpa_lightning.results.run_results import RunResults

_KEPT_SAFETY, _KEPT_SHARED, _RELEASED = "#0072B2", "#E69F00", "#D9D9D9"


def plot_matrix(run: RunResults) -> Figure:
    """Heat map of the scores: one row per step (the aligned model first), one column per task, percent."""
    return plot_scores(np.vstack([list(run.initial().values()), run.matrix()]), run.tasks, run.tested)


def plot_scores(
    scores: np.ndarray, tasks: Sequence[str], tested: Sequence[str] | None = None, start: str = "aligned"
) -> Figure:
    """Heat map of scores as fractions, ``(1 + T, tested)``: the model before the first task, then after every task.

    Args:
        scores: as above.
        tasks: of the rows but the first.
        tested: of the columns; ``tasks`` when ``None``.
        start: what the model before the first task is called.
    """
    tested = tasks if tested is None else tested
    values = 100 * scores
    rows, columns = values.shape
    figure = new_figure(max(9.2, 2.6 + 0.8 * columns), 1.5 + 0.45 * rows)
    ax = figure.subplots()
    norm = Normalize(0, 100)
    image = ax.imshow(np.ma.masked_invalid(values), cmap="cividis", norm=norm, aspect="auto")
    ax.set_facecolor("#EDEDED")
    for (row, column), value in np.ndenumerate(values):
        colour = "#555555" if math.isnan(value) else "white" if value < 55 else "black"
        text = "–" if math.isnan(value) else f"{value:.1f}"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        if row > 0 and tasks[row - 1] == tested[column]:
            ax.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, fill=False, edgecolor="#D55E00", lw=2))
    ax.set_xticks(range(columns), tested, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(rows), [start, *(f"after {task}" for task in tasks)])
    ax.set_xlabel("evaluated on (framed: the task just learnt)")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="score, %", pad=0.02)
    return figure


def plot_curves(run: RunResults) -> Figure:
    """Scores of the tasks (above), attack success and over-refusal (below) per step, percent."""
    names = [step_name(run, step) for step in run.steps]
    figure = new_figure(9.2, 7.2)
    upper, lower = new_axes(figure, 2, sharex=True)
    steps = np.array(run.steps)
    scores = np.array([list(run.scores(step, "task").values()) for step in run.steps]) * 100
    for index, task in enumerate(run.names("task")):
        style = series_style(index)
        learnt = steps >= (run.tasks.index(task) if task in run.tasks else len(run.tasks))
        before = ~learnt
        upper.plot(steps[before], scores[before, index], color=style["color"], linestyle=":", linewidth=1.2)
        upper.plot(steps[learnt], scores[learnt, index], label=task, linewidth=1.6, markersize=6, **style)
    summaries = [run.summary(step) for step in run.steps]
    performance = [100 * summary["AP"] for summary in summaries]
    upper.plot(
        steps[steps >= 0],
        np.array(performance)[steps >= 0],
        color="black",
        linewidth=3,
        alpha=0.75,
        label="AP",
    )
    percent_axis(upper, "task score, %")
    upper.set_title("Tasks (dotted: not learnt yet)", loc="left", fontsize=11)

    sets = run.names("safety")
    for index, name in enumerate(sets):
        rates = [100 * run.safety(step)[name] for step in run.steps]
        lower.plot(steps, rates, label=f"ASR {name}", linewidth=1.4, markersize=6, **series_style(index))
    if sets:
        lower.plot(
            steps,
            [100 * s["MASR"] for s in summaries],
            color="black",
            linewidth=3,
            alpha=0.6,
            zorder=1.5,
            label="MASR",
        )
    for offset, name in enumerate(run.names("over_refusal")):
        rates = [100 * run.over_refusal(step)[name] for step in run.steps]
        style = series_style(len(sets) + offset)
        lower.plot(steps, rates, "--", label=f"over-refusal {name}", linewidth=1.4, markersize=6, **style)
    percent_axis(lower, "share of responses, %", whole=False)
    lower.set_title("Safety (lower is better)", loc="left", fontsize=11)
    for ax in (upper, lower):
        if ax.get_legend_handles_labels()[0]:
            legend_beside(ax)
    step_axis(lower, run.steps, names)
    return figure


def _module_type(event: RetentionEvent) -> str:
    return (event.module or "").rsplit(".", 1)[-1]


def plot_retention(run: RunResults) -> Figure | None:
    """Retained columns by layer and by module type, percent of all columns, mean over the tasks.

    Bars stack what was kept (safety-focused only, then shared with the task) and the safety-focused columns
    that were released. None if the run recorded no retention.
    """
    events = run.events(RetentionEvent)
    if not events:
        return None
    layers = sorted({event.layer for event in events if event.layer is not None})
    modules = list(dict.fromkeys(_module_type(event) for event in events))
    figure = new_figure(9.2, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])

    def shares(chosen: list[RetentionEvent]) -> tuple[float, float, float]:
        columns = sum(event.columns for event in chosen)
        kept = sum(event.retained for event in chosen)
        only_safety = sum(min(event.retained, (event.safety_focused or 0) - (event.shared or 0)) for event in chosen)
        released = sum(max((event.safety_focused or 0) - event.retained, 0) for event in chosen)
        return 100 * only_safety / columns, 100 * (kept - only_safety) / columns, 100 * released / columns

    by_layer = np.array([shares([event for event in events if event.layer == layer]) for layer in layers])
    by_module = np.array([shares([event for event in events if _module_type(event) == name]) for name in modules])
    parts = (
        ("kept, safety-focused only", _KEPT_SAFETY, ""),
        ("kept, shared with the task", _KEPT_SHARED, "//"),
        ("safety-focused, released", _RELEASED, ""),
    )
    for part, (label, colour, hatch) in enumerate(parts):
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5, "label": label}
        left.bar(layers, by_layer[:, part], bottom=by_layer[:, :part].sum(1), width=0.8, **style)
        right.barh(range(len(modules)), by_module[:, part], left=by_module[:, :part].sum(1), height=0.7, **style)
    left.set_xlabel("layer")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlim(min(layers) - 0.7, max(layers) + 0.7)
    left.set_ylabel("columns, %")
    right.set_yticks(range(len(modules)), modules)
    right.invert_yaxis()
    right.set_xlabel("columns, %")
    for ax, axis in ((left, "y"), (right, "x")):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis=axis, color="#E3E3E3", linewidth=0.8)
        ax.set_axisbelow(True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def plot_trade_off(runs: Sequence[RunResults]) -> Figure | None:
    """Average performance against mean attack success after the last task, percent; the upper left is best.

    One run: its whole way, step by step. Several runs: one small marker per run and, for methods with several
    runs, the mean with its 95 % confidence intervals. A dashed line for each MASR before the first task. None if no
    run has both figures.
    """
    if not any(math.isfinite(run.summary()["AP"] + run.summary()["MASR"]) for run in runs):
        return None
    figure = new_figure(9.2, 4.8)
    (ax,) = new_axes(figure)
    ax.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    if len(runs) == 1:
        run = runs[0]
        points = [(run.summary(step), step) for step in run.steps if step >= 0]
        x, y = ([100 * summary[key] for summary, _ in points] for key in ("MASR", "AP"))
        ax.plot(x, y, color=COLOURS[0], linewidth=1.2, alpha=0.6)
        for index, (summary, step) in enumerate(points):
            label = f"{step + 1}: {step_name(run, step)}"
            ax.plot(
                100 * summary["MASR"],
                100 * summary["AP"],
                linestyle="",
                markersize=9,
                label=label,
                **series_style(index),
            )
    else:
        for index, (method, group) in enumerate(by_method(runs).items()):
            style = series_style(index)
            x, y = ([100 * run.summary()[key] for run in group] for key in ("MASR", "AP"))
            several = len(group) > 1
            ax.plot(
                x,
                y,
                linestyle="",
                markersize=5 if several else 9,
                alpha=0.5 if several else 1,
                **style,
                label=None if several else method,
            )
            if several:
                found_x, found_y = estimate(x), estimate(y)
                (left, right), (low, high) = interval_ends(*found_x), interval_ends(*found_y, all_shares(runs))
                (mean_x, _), (mean_y, _) = found_x, found_y
                reach_x, reach_y = [[mean_x - left], [right - mean_x]], [[mean_y - low], [high - mean_y]]
                ax.errorbar(mean_x, mean_y, reach_y, reach_x, markersize=9, capsize=3, label=method, **style)
    for number, start in enumerate(starting_rates(runs)):
        label = "_nolegend_" if number else "MASR of the aligned model"
        ax.axvline(start, color="#555555", linestyle="--", linewidth=1, label=label)
    ax.set_xlabel("mean attack success rate (MASR), %   ← safer")
    ax.set_ylabel("average performance (AP), %   better →")
    ax.margins(0.12)
    legend_beside(ax)
    return figure


def starting_rates(runs: Sequence[RunResults]) -> list[float]:
    """The distinct MASRs before the first task, percent: more than one where runs start with different models."""
    rates = [100 * run.summary(-1)["MASR"] for run in runs if -1 in run.steps]
    return sorted({round(rate, 6) for rate in rates if not math.isnan(rate)})


def plot_comparison(runs: Sequence[RunResults]) -> Figure:
    """AP (above) and MASR (below) per step: mean over a method's runs with 95 % confidence bands."""
    return plot_steps(by_method(runs))


def plot_steps(
    groups: Mapping[str, Sequence[RunResults]], styles: Mapping[str, int] | None = None, start: str = ""
) -> Figure:
    """AP on the tasks learnt so far (above) and MASR (below) per step: mean over a group's runs, 95 % bands.

    Args:
        groups: label -> runs.
        styles: label -> number of its colour and marker; by default in the order of ``groups``.
        start: what the model before the first task is called; by default what the runs call it.
    """
    runs = [run for group in groups.values() for run in group]
    figure = new_figure(9.2, 6.6)
    axes = new_axes(figure, 2, sharex=True)
    steps = sorted({step for run in runs for step in run.steps})
    same_stream = len({tuple(run.tasks) for run in runs}) == 1
    for ax, key, share in zip(axes, ("AP", "MASR"), (all_shares(runs), True), strict=True):
        for index, (label, group) in enumerate(groups.items()):
            shown = [step for step in steps if any(step in run.steps for run in group) and (key != "AP" or step >= 0)]
            estimates = [estimate([100 * r.summary(s)[key] for r in group if s in r.steps]) for s in shown]
            means, widths = (np.array([e[part] for e in estimates]) for part in (0, 1))
            style = series_style(index if styles is None else styles[label])
            ax.plot(shown, means, label=label, linewidth=1.8, markersize=6, **style)
            low, high = interval_ends(means, widths, share)
            ax.fill_between(shown, low, high, color=style["color"], alpha=0.15, linewidth=0)
        percent_axis(ax, f"{key}, %", whole=key == "AP")
    axes[0].set_title("Average performance on the tasks learnt so far (higher is better)", loc="left", fontsize=11)
    axes[1].set_title("Mean attack success rate (lower is better)", loc="left", fontsize=11)
    legend_beside(axes[0])
    names = [step_name(runs[0], s) if same_stream or s < 0 else f"task {s + 1}" for s in steps]
    names = [start if start and s < 0 else name for s, name in zip(steps, names, strict=True)]
    step_axis(axes[1], steps, names)
    return figure
