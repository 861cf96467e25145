"""Writes the whole report of one or several runs: tables, plots and the HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from matplotlib.figure import Figure

from hpa_lightning.files import staged
from hpa_lightning.report.category_tables import category_csv_table
from hpa_lightning.report.drift_plots import plot_drift
from hpa_lightning.report.judges import warn_of_mixed_judges
from hpa_lightning.report.plots import (
    plot_comparison,
    plot_curves,
    plot_matrix,
    plot_retention,
    plot_trade_off,
    starting_rates,
)
from hpa_lightning.report.run_page import render_page
from hpa_lightning.report.run_tables import method_table, run_labels, run_table, score_table, warn_of_other_scoring
from hpa_lightning.report.safety_curve_plot import plot_safety_curve
from hpa_lightning.report.style import save_figure, slugs
from hpa_lightning.report.templating import Image
from hpa_lightning.results.completeness import require_finished
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import MISSING, format_cell


def _sentence(run: RunResults) -> str:
    """The last figures in words, for readers who cannot see the plot."""
    summary = run.summary()
    figures = [(key, format_cell(100 * summary[key])) for key in ("AP", "BWT", "MASR", "DASR")]
    return ", ".join(f"{key} {value} %" for key, value in figures if value != MISSING) + " after the last task."


def _run_images(run: RunResults, file_name: str, folder: Path) -> list[Image]:
    figures = [
        (
            "matrix",
            plot_matrix(run),
            "Score on every task after every step; framed, the task just learnt.",
            f"Heat map of the score matrix. {_sentence(run)} The table above holds the same numbers.",
        ),
        (
            "curves",
            plot_curves(run),
            "Task scores, attack success and over-refusal step by step.",
            f"Lines of the task scores and of the safety rates per step. {_sentence(run)}",
        ),
        (
            "safety-curve",
            plot_safety_curve({"": [run]}),
            "Safety and task scores while the tasks are trained, against the optimizer steps.",
            "Lines of task scores, attack success and over-refusal against the optimizer steps of the fit.",
        ),
        (
            "retention",
            plot_retention(run),
            "Columns kept from before the task, by layer and by module type, mean over the tasks.",
            "Stacked bars: share of columns kept in each layer and each module type.",
        ),
        (
            "drift",
            plot_drift(run),
            "How far each decoder block has moved from the model before the first task.",
            "Lines over the decoder blocks, one for each step: drift of hidden states and of weights.",
        ),
    ]
    images = []
    for name, figure, caption, alt in figures:
        if figure is not None:
            path = folder / f"{file_name}-{name}.png"
            save_figure(figure, path)
            images.append(Image(path, caption, alt))
    return images


def _overview(runs: Sequence[RunResults], folder: Path) -> list[Image]:
    figures: list[tuple[str, Figure | None, str]] = [
        (
            "trade-off",
            plot_trade_off(runs),
            "What was learnt against what it cost in safety; the upper left is best."
            + (
                " Dashed: the models that the runs started with, which differ." if len(starting_rates(runs)) > 1 else ""
            ),
        )
    ]
    if len(runs) > 1:
        caption = "Step by step: mean over the runs of a method, with 95 % confidence bands."
        figures.append(("comparison", plot_comparison(runs), caption))
    images = []
    for name, figure, caption in figures:
        if figure is not None:
            path = folder / f"{name}.png"
            save_figure(figure, path)
            alt = f"{caption} The summary table holds the numbers after the last task."
            images.append(Image(path, caption, alt))
    return images


def write_report(
    run_dirs: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    title: str | None = None,
    unfinished: bool = False,
) -> dict[str, Path]:
    """Writes tables, plots and one self-contained HTML page about one run or several.

    Args:
        run_dirs: folders that hold a ``results.jsonl``, or such files.
        output: the folder to write to; it is made if need be, files of the same name are replaced, the page last.
        title: the page's title.
        unfinished: take runs that are not finished too, as far as they are.

    Returns:
        What was written: ``"html"`` (report.html), ``"summary_csv"`` and ``"summary_md"`` (one row per
        method), ``"summary_json"`` (methods and runs, not rounded), ``"matrix_csv"`` (every score of every
        run), ``"categories_csv"`` (every figure of every category, where there are any), and every plot under its
        file name without ``.png``. All scores are in percent.

    Raises:
        ValueError: if there is no run, or one is given twice, or a result file is broken or holds no score, or a run
            is not finished and such runs were not asked for.
        FileNotFoundError: if a result file is missing.
    """
    if isinstance(run_dirs, (str, PathLike)):
        raise ValueError(f"run_dirs is a list of folders, got the single path {str(run_dirs)!r}; wrap it in a list.")
    if not run_dirs:
        raise ValueError("A report needs at least one run's folder, got none.")
    runs = [RunResults.from_file(path) for path in run_dirs]
    for number, run in enumerate(runs):
        twin = next((other for other in runs[:number] if other.records == run.records), None)
        if twin is not None:
            raise ValueError(
                f"{run.path} and {twin.path} hold the same run, which would count as two; pass each run once."
            )
        if not run.steps:
            raise ValueError(f"{run.path} holds no score yet, so there is nothing to report; evaluate the run first.")
    if not unfinished:
        require_finished(runs)
    warn_of_mixed_judges(runs)
    warn_of_other_scoring(runs)
    with staged(output, last=["report.html"]) as folder:
        paths = _write(runs, folder, title)
    return {key: Path(output) / path.relative_to(folder) for key, path in paths.items()}


def _write(runs: Sequence[RunResults], folder: Path, title: str | None) -> dict[str, Path]:
    labels = run_labels(runs)
    methods = method_table(runs)
    summary = {"unit": "percent", "methods": methods.records(), "runs": run_table(runs).records()}
    texts = {
        "summary_csv": ("summary.csv", methods.csv()),
        "summary_md": ("summary.md", methods.markdown() + "\n"),
        "summary_json": ("summary.json", json.dumps(summary, ensure_ascii=False, indent=2) + "\n"),
        "matrix_csv": ("matrix.csv", score_table(runs).csv()),
    }
    if (by_category := category_csv_table(runs)).rows:
        texts["categories_csv"] = ("categories.csv", by_category.csv())
    paths: dict[str, Path] = {}
    for key, (name, text) in texts.items():
        paths[key] = folder / name
        paths[key].write_text(text, encoding="utf-8")
    overview = _overview(runs, folder)
    images = {
        label: _run_images(run, file_name, folder)
        for run, label, file_name in zip(runs, labels, slugs(labels), strict=True)
    }
    for image in [*overview, *(image for group in images.values() for image in group)]:
        paths[image.path.stem] = image.path
    paths["html"] = folder / "report.html"
    paths["html"].write_text(render_page(runs, images, overview, title), encoding="utf-8")
    return paths
