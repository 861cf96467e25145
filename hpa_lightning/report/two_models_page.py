"""The table and the picture of two checkpoints compared block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpa_lightning.files import staged
from hpa_lightning.report.drift_plots import SHADE
from hpa_lightning.report.style import COLOURS, legend_beside, new_axes, new_figure, save_figure, series_style
from hpa_lightning.table import Cell, Table

TABLE_FILE, FIGURE_FILE, DRIFT_FILE = "drift.csv", "drift.png", "drift.json"


def block_table(drift: Any) -> Table:
    """One row for every block: ``1 - cosine`` on every set of prompts, drift of the weights, columns in percent."""
    columns = ["Block", *(f"1 - cosine, {name}" for name in drift.cosines), "Weights", "Unmoved columns %"]
    columns += ["Kept by HPA %"] if drift.kept is not None else []
    rows: list[list[Cell]] = []
    for index, moved in enumerate(drift.weights):
        safety = drift.first is not None and drift.first <= index + 1 <= drift.last
        cosines = [f"{1 - values[index]:.4f}" for values in drift.cosines.values()]
        row: list[Cell] = [f"{index + 1}{' (safety)' if safety else ''}", *cosines, f"{moved:.4f}"]
        row.append(f"{drift.unmoved[index]:.1f}")
        rows.append([*row, f"{drift.kept[index]:.1f}"] if drift.kept is not None else row)
    return Table(columns, rows)


def part_table(drift: Any) -> Table:
    """Drift of the weights by kind of layer, over all blocks, and of everything outside these layers."""
    rows: list[list[Cell]] = [[name, f"{share:.4f}"] for name, share in {**drift.modules, **drift.elsewhere}.items()]
    return Table(["Part", "Weights"], rows)


def plot_two_models(drift: Any) -> Figure:
    """Hidden states, weights and columns over the blocks, the safety layers of the model before shaded.

    Hidden states are left out where no prompts were given, columns where none are equal in both models or kept.
    """
    numbers = range(1, len(drift.weights) + 1)
    columns = drift.kept is not None or any(drift.unmoved)
    panels = 1 + bool(drift.cosines) + columns
    figure = new_figure(9.2, 1.0 + 2.4 * panels)
    axes = new_axes(figure, panels, sharex=True)
    if drift.cosines:
        for index, (name, values) in enumerate(drift.cosines.items()):
            heights = [1 - value for value in values]
            axes[0].plot(numbers, heights, label=f"{name} ({drift.sets[name]})", markersize=6, **series_style(index))
        axes[0].set_title("Hidden states at the prompts' last token", loc="left", fontsize=11)
        axes[0].set_ylabel("1 − cosine")
        legend_beside(axes[0])
    moved = axes[int(bool(drift.cosines))]
    moved.plot(numbers, drift.weights, markersize=6, **series_style(0))
    moved.set_title("Weights of the linear layers", loc="left", fontsize=11)
    moved.set_ylabel("‖W − W₀‖ / ‖W₀‖")
    if columns:
        axes[-1].bar(numbers, drift.unmoved, width=0.7, color=COLOURS[6], label="equal in both")
        if drift.kept is not None:
            axes[-1].plot(
                numbers, drift.kept, linestyle="", marker="_", markersize=22, color=COLOURS[1], label="kept by HPA"
            )
        axes[-1].set_title("Input columns", loc="left", fontsize=11)
        axes[-1].set_ylabel("columns, %")
        legend_beside(axes[-1])
    shaded = "" if drift.first is None else " (shaded: safety layers of the model before)"
    axes[-1].set_xlabel(f"decoder block{shaded}")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        if drift.first is not None:
            ax.axvspan(drift.first - 0.5, drift.last + 0.5, color=SHADE, zorder=0)
        ax.set_ylim(0, 1.06 * ax.get_ylim()[1])  # a marker at the top is not cut
    return figure


def write_two_models(drift: Any, folder: Path) -> None:
    """Write figures, table and picture; files of the same names are replaced."""
    with staged(folder, last=[DRIFT_FILE]) as inside:
        save_figure(plot_two_models(drift), inside / FIGURE_FILE)
        (inside / TABLE_FILE).write_text(block_table(drift).csv(), encoding="utf-8")
        (inside / DRIFT_FILE).write_text(json.dumps(drift.record(), indent=2) + "\n", encoding="utf-8")
