"""The report of a study: methods compared over seeds, with paired tests, trade-offs, sweeps and where it all came from.

Percent throughout. Only finished runs count (every set scored after the last task); what is missing is listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hpa_lightning.metrics.scoring import broken_not_safe
from hpa_lightning.report.cost_table import cost_table
from hpa_lightning.report.drift_prediction import drift_columns_table, has_drift, sets_left_out
from hpa_lightning.report.judges import warn_of_mixed_judges
from hpa_lightning.report.plots import plot_scores, plot_steps
from hpa_lightning.report.run_tables import seed_label
from hpa_lightning.report.safety_curve_plot import plot_safety_curve
from hpa_lightning.report.study_columns import plot_columns
from hpa_lightning.report.study_drift import plot_study_drift
from hpa_lightning.report.study_page import Block, Heading, Origin, TextBlock, TitledTable, origin_of, write_page
from hpa_lightning.report.study_plots import common_title, final_estimate, plot_against_performance, plot_sweep
from hpa_lightning.report.study_tables import (
    BROKEN,
    REFUSES,
    REFUSING,
    SET_HEADINGS,
    Columns,
    StudyCell,
    all_scores,
    broken_cells,
    checked,
    comparison_table,
    difference_table,
    in_points,
    learning_table,
    mean_matrix_table,
    origin_table,
    refuses,
    set_table,
    start_name,
    step_table,
)
from hpa_lightning.report.style import save_figure, slugs
from hpa_lightning.report.templating import Image
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Table, format_cell

__all__ = [
    "StudyCell",
    "StudyGroup",
    "SweepAxis",
    "comparison_table",
    "learning_table",
    "mean_matrix_table",
    "step_table",
    "write_study_report",
]

_MOST_CURVES = 8
_MOST_BROKEN = 8
# Points of a plot that get a name each; of more, the settings of one method share one.
_MOST_NAMES = 24


@dataclass(frozen=True)
class SweepAxis:
    """The setting along the x axis of a sweep.

    Args:
        label: what it is, with its unit.
        values: method -> its value; methods without one are drawn as horizontal lines.
        series: method -> the line it belongs to; one line where this is empty.
        logarithmic: of the axis.

    Raises:
        ValueError: a logarithmic axis with a value that is not positive.
    """

    label: str
    values: Mapping[str, float]
    series: Mapping[str, str] = field(default_factory=dict)
    logarithmic: bool = False

    def __post_init__(self) -> None:
        for method, value in self.values.items():
            if self.logarithmic and value <= 0:
                raise ValueError(
                    f"{method!r} has {self.label} = {value}, which a logarithmic axis cannot show; expected positive "
                    "numbers."
                )


@dataclass(frozen=True)
class StudyGroup:
    """Runs that are shown together, one section for each of their conditions.

    Args:
        name: part of the figures' file names; distinct in a report.
        title, text: heading and introduction (paragraphs; ``code`` in backticks).
        cells: the runs, methods in the order of the tables.
        reference: the method that the others are compared with, or several, each with a table of its own.
        x: the setting of a sweep.
        command: what makes the section again.
        missing: runs that belong here and do not exist, listed below the first table.
        curves: methods in the figure of every step; by default all, up to eight with the (first) reference among them.
        matrices: methods whose mean score matrix is shown.
        columns: heading -> evaluation sets whose mean score is a further column, such as text-only attack success.
        without: condition -> headings of the columns that it has not.
        costs: show what the methods cost in time and memory, beside the (first) reference.
    """

    name: str
    title: str
    text: str
    cells: Sequence[StudyCell]
    reference: str | Sequence[str] | None = None
    x: SweepAxis | None = None
    command: str = ""
    missing: Sequence[str] = ()
    curves: Sequence[str] | None = None
    matrices: Sequence[str] = ()
    columns: Columns = field(default_factory=dict)
    without: Mapping[str, Collection[str]] = field(default_factory=dict)
    costs: bool = False

    @property
    def references(self) -> tuple[str, ...]:
        """The reference, or the references, if any."""
        return (self.reference,) if isinstance(self.reference, str) else tuple(self.reference or ())


def write_study_report(
    groups: Sequence[StudyGroup], folder: str | PathLike[str], title: str = "Results", text: str = ""
) -> dict[str, Path]:
    """Write ``results.md``, with images beside it in ``figures/``, and ``results.html``, which holds all of it.

    Args:
        groups: the sections, in order.
        folder: made if need be; files of the same name are replaced, but for what stands in ``results.md`` from
            `BY_HAND` on.
        title, text: heading and introduction.

    Returns:
        ``"markdown"``, ``"html"`` and every figure under its file name without ``.png``.

    Raises:
        ValueError: no group, two of one name, or cells that cannot be compared (see `comparison_table`).
    """
    names = [group.name for group in groups]
    if not groups or len(set(names)) < len(names):
        raise ValueError(f"got the groups {names}; expected at least one, of distinct names.")
    sections = [(group, condition) for group in groups for condition in _conditions(group)]
    files = dict(zip([(group.name, condition) for group, condition in sections], _files(sections), strict=True))

    def blocks(figures: Path) -> list[Block]:
        found: list[Block] = []
        for group in groups:
            warn_of_mixed_judges(cell.run for cell in group.cells)
            found += _section(group, figures, files)
        return found

    return write_page(blocks, folder, "results", title, text)


def _conditions(group: StudyGroup) -> list[str]:
    """The conditions of which a run is finished."""
    return list(dict.fromkeys(cell.condition for cell in group.cells if cell.finished))


def _files(sections: Sequence[tuple[StudyGroup, str]]) -> list[str]:
    """What the file names of the figures of each group and condition begin with; distinct."""
    return slugs(
        [f"{group.name}-{condition}" if len(_conditions(group)) > 1 else group.name for group, condition in sections]
    )


def _section(group: StudyGroup, figures: Path, files: Mapping[tuple[str, str], str]) -> list[Block]:
    blocks: list[Block] = [Heading(2, group.title), TextBlock(group.text)]
    finished = [cell for cell in group.cells if cell.finished]
    missing = [*group.missing, *(_unfinished(cell) for cell in group.cells if not cell.finished)]
    conditions = _conditions(group)
    if not conditions:
        return [*blocks, TextBlock("No run is finished."), origin_of([], group.command, missing)]
    for condition in conditions:
        cells = [cell for cell in finished if cell.condition == condition]
        if len(conditions) > 1 or condition:
            blocks.append(Heading(3, f"{group.title}: {condition}" if condition else group.title))
        absent = group.without.get(condition, ())
        columns = {heading: sets for heading, sets in group.columns.items() if heading not in absent}
        own = dataclasses.replace(group, columns=columns)
        blocks += _condition(own, cells, missing, figures, files[group.name, condition])
        missing = []
    return blocks


def _unfinished(cell: StudyCell) -> str:
    done = sum(step >= 0 for step in cell.run.steps)
    condition = f", {cell.condition}" if cell.condition else ""
    return f"{cell.title}{condition}, seed {cell.seed} (begun, {done} of {len(cell.run.tasks)} tasks scored)"


def _condition(
    group: StudyGroup, cells: list[StudyCell], missing: Sequence[str], figures: Path, name: str
) -> list[Block]:
    labels, runs = checked(cells)
    shown = {labels[method]: list(by_seed.values()) for method, by_seed in runs.items()}
    styles = {label: number for number, label in enumerate(shown)}
    origin = origin_of(cells, group.command, missing)
    blocks: list[Block] = []
    aligned = [cell.run for cell in cells if not cell.start]
    families = _families(cells, labels)
    joined = " The settings of one method are joined by a line, in the order of the tables." if families else ""

    def table(content: Table, caption: str, note: str = "") -> None:
        reported = any(isinstance(block, Origin) for block in blocks)  # what is missing, below the first table
        below = dataclasses.replace(origin, missing=()) if reported else origin
        blocks.extend([TitledTable(content, caption), *([TextBlock(note)] if note else []), below])

    def image(kind: str, figure: Figure | None, caption: str, alt: str) -> None:
        if figure is not None:
            path = figures / f"{name}-{kind}.png"
            save_figure(figure, path)
            blocks.append(Image(path, caption, alt))

    points = [heading for heading, sets in group.columns.items() if in_points(sets)]
    but_points = f" ({', '.join(points)}: points)" if points else ""
    table(
        comparison_table(cells, None, group.columns),
        f"After the last task, percent{but_points}: mean ± 95 % confidence interval over seeds",
        _notes(cells, any(refuses(by_label) for by_label in shown.values())),
    )
    for reference in group.references:
        table(
            difference_table(cells, reference, group.columns),
            f"Difference to {labels.get(reference, reference)} over the seeds that both have, percentage points"
            f"{but_points}: mean ± 95 % confidence interval; p of the two-sided paired t-test, corrected after Holm "
            "over the methods of this table for each metric (not over metrics: what is just below 0.05 would not "
            "survive that)",
        )
    if any(len(cell.run.names(kind)) > 1 for cell in cells for kind in SET_HEADINGS):  # else the means tell all
        table(set_table(cells), "Set by set after the last task, percent: mean ± 95 % confidence interval over seeds")
    image(
        "columns",
        plot_columns(shown, group.columns, styles),
        "After the last task: mean over seeds with 95 % confidence intervals, those of shares cut at 0 and 100; "
        "hollow: fewer than three seeds, no interval.",
        "One panel for each of the columns " + ", ".join(group.columns) + "; the table above holds the numbers.",
    )
    image(
        "trade-off",
        plot_against_performance(shown, "MASR", styles, families, aligned),
        "What is known after the last task against what it cost in safety: mean over seeds with 95 % confidence "
        "intervals, those of shares cut at 0 and 100; hollow: fewer than three seeds, no interval. The upper left is "
        f"best.{joined}",
        _values_in_words(shown, ("AP", "MASR")),
    )
    image(
        "over-refusal",
        plot_against_performance(shown, "over_refusal", styles, families, aligned),
        "Usefulness both ways: average performance against the share of harmless inputs that are refused; mean over "
        "seeds with 95 % confidence intervals, those of shares cut at 0 and 100; hollow: fewer than three seeds, no "
        f"interval. The upper left is best.{joined}",
        _values_in_words(shown, ("AP", "over_refusal")),
    )
    if group.x is not None:
        image("sweep", *_sweep(group.x, runs, labels))
    curves, left_out = _curves(group, runs)
    more = f"; {left_out} more methods are in the tables" if left_out else ""
    if curves:
        chosen = {labels[method]: shown[labels[method]] for method in curves}
        image(
            "steps",
            plot_steps(chosen, styles, start_name([cell for cell in cells if cell.method in curves])),
            "Step by step: average performance on the tasks learnt so far and mean attack success rate, mean over "
            f"seeds with 95 % confidence bands{more}.",
            "Lines of average performance and of mean attack success rate per step. After the last task: "
            + _values_in_words(chosen, ("AP", "MASR")),
        )
    curved = {label: shown[label] for label in (labels[method] for method in curves)} or shown
    image(
        "safety-curve",
        plot_safety_curve(curved),
        "While the tasks are trained, against the optimizer steps: task scores, attack success and over-refusal, mean "
        f"over seeds with 95 % confidence bands{more}.",
        "Lines against the optimizer steps. After the last task: " + _values_in_words(curved, ("AP", "MASR")),
    )
    alike = _of_one_start(cells, group)
    drifted = {label: runs for label, runs in curved.items() if label in {labels[cell.method] for cell in alike}}
    image(
        "drift",
        plot_study_drift(drifted, styles),
        "How far every decoder block is from the model that the runs start with: mean over seeds with 95 % confidence "
        f"bands{more}.",
        "Lines over the decoder blocks, one for each of these methods, for each set of prompts and for the weights.",
    )
    if len(measured := [cell.run for cell in alike if has_drift(cell.run)]) > 2:
        table(
            drift_columns_table(measured, group.columns),
            "Does drift tell the loss of safety? Rank correlation with the rise of attack success, after tasks and in "
            f"them, over {len(measured)} runs that start with the same model (95 % interval: bootstrap over runs)",
            sets_left_out(measured),
        )
    table(
        step_table(cells),
        "MASR after each task, percent: mean ± 95 % confidence interval over seeds",
        _other_starts(cells, labels),
    )
    table(
        learning_table(cells),
        "Score on each task right after it was learnt, percent: mean ± 95 % confidence interval over seeds",
    )
    for method, file in zip(group.matrices, slugs(group.matrices), strict=True):
        if method not in runs:
            continue
        label, by_seed = labels[method], list(runs[method].values())
        start = start_name([cell for cell in cells if cell.method == method])
        mean = np.mean([all_scores(run) for run in by_seed], axis=0)
        caption = f"{label}: score on every task after every task, percent, mean over {len(by_seed)} seeds"
        table(mean_matrix_table(by_seed, start), f"{caption} ± 95 % confidence interval")
        image(
            f"matrix-{file}",
            plot_scores(mean, by_seed[0].tasks, by_seed[0].tested, start),
            f"{caption}; framed, the task just learnt.",
            f"Heat map of the mean score matrix of {label}; the table above it holds the same numbers.",
        )
    if group.costs:
        table(
            cost_table(cells, next(iter(group.references), None)),
            "What a run cost: wall minutes and the most memory that its process held, mean ± 95 % confidence interval "
            "over seeds, the ratio over the seeds that both have with as many threads; other work on the machine "
            "counts in the times",
        )
    if len(origin.commits) > 1:
        blocks.append(TitledTable(origin_table(cells), "Which commits the runs were made with"))
    return blocks


def _notes(cells: Sequence[StudyCell], refusing: bool) -> str:
    """What the marks behind the names of methods mean, one paragraph for each that there is."""
    notes = []
    if refusing:
        notes.append(
            f"{REFUSES.strip()} refuses at least {100 * REFUSING:.0f} % of the harmless inputs: a low MASR is worth "
            "little then."
        )
    if broken := broken_cells(cells):
        listed = ". ".join(
            f"{cell.title}, seed {seed_label(cell.seed)}, {where}" for cell, where in broken[:_MOST_BROKEN]
        )
        more = f". And {len(broken) - _MOST_BROKEN} more runs" if len(broken) > _MOST_BROKEN else ""
        notes.append(f"{BROKEN.strip()} {broken_not_safe('a model', f'in {len(broken)} of the runs')} {listed}{more}.")
    return "\n\n".join(notes)


def _other_starts(cells: Sequence[StudyCell], labels: Mapping[str, str]) -> str:
    """Which methods start with the model of another one's run; empty if all start with the aligned model."""
    starts: dict[str, list[str]] = {}
    for method, start in {cell.method: cell.start for cell in cells if cell.start}.items():
        starts.setdefault(labels.get(start, f"`{start}`"), []).append(labels[method])
    if not starts:
        return ""
    said = "; ".join(f"the run of {start} of the same seed ended with: {', '.join(of)}" for start, of in starts.items())
    others = "" if all(cell.start for cell in cells) else " The others are the aligned model."
    return f"Before their first task these are the model that {said}.{others}"


def _of_one_start(cells: Sequence[StudyCell], group: StudyGroup) -> list[StudyCell]:
    """The runs that start where the reference (else the first that drifted) does: drift is measured from there."""
    known = [cell for cell in cells if has_drift(cell.run)]
    first = next((cell for cell in known if cell.method in group.references[:1]), next(iter(known), None))
    return [cell for cell in known if first is not None and cell.start == first.start]


def _families(cells: Sequence[StudyCell], labels: Mapping[str, str]) -> dict[str, str] | None:
    """Label -> name of its method without the settings, where a plot cannot hold a name for every setting."""
    if len(labels) <= _MOST_NAMES:
        return None
    members: dict[str, list[str]] = {}
    for method, family in {cell.method: cell.family or cell.method for cell in cells}.items():
        members.setdefault(family, []).append(labels[method])
    return {label: common_title(of) for of in members.values() for label in of}


def _curves(group: StudyGroup, runs: Mapping[str, object]) -> tuple[list[str], int]:
    """The methods in the figure of every step, and how many are left out."""
    if group.curves is not None:
        chosen = [method for method in runs if method in group.curves]
        return chosen, 0
    chosen = list(runs)[:_MOST_CURVES]
    for reference in group.references[:1]:
        if reference in runs and reference not in chosen:
            chosen = [*chosen[:-1], reference]
    return chosen, len(runs) - len(chosen)


def _sweep(
    axis: SweepAxis, runs: Mapping[str, Mapping[int, RunResults]], labels: Mapping[str, str]
) -> tuple[Figure | None, str, str]:
    series: dict[str, dict[float, list[RunResults]]] = {}
    lines: dict[str, list[RunResults]] = {}
    words = []
    for method, by_seed in runs.items():
        group = list(by_seed.values())
        if method not in axis.values:
            lines[labels[method]] = group
            continue
        name, value = axis.series.get(method, "sweep"), axis.values[method]
        points = series.setdefault(name, {})
        if value in points:
            raise ValueError(
                f"two methods of the line {name!r} have {axis.label} = {value}, the second is {method!r}; expected one "
                "(SweepAxis.series distinguishes lines)."
            )
        points[value] = group
        words.append(
            f"{f'{name}, ' if axis.series else ''}{value:g}: AP {format_cell(final_estimate(group, 'AP').mean)}, "
            f"MASR {format_cell(final_estimate(group, 'MASR').mean)}"
        )
    caption = f"After the last task against {axis.label}: mean over seeds with 95 % confidence intervals."
    if not series:
        return None, caption, ""
    figure = plot_sweep(series, axis.label, lines, axis.logarithmic)
    return (
        figure,
        caption,
        f"Average performance, attack success and over-refusal against {axis.label}. {'; '.join(words)}.",
    )


def _values_in_words(groups: Mapping[str, Sequence[RunResults]], keys: Sequence[str]) -> str:
    """The values of a plot for those who cannot see it."""
    names = {"over_refusal": "over-refusal"}
    each = [
        f"{label} " + ", ".join(f"{names.get(key, key)} {format_cell(final_estimate(runs, key).mean)}" for key in keys)
        for label, runs in groups.items()
    ]
    return f"Percent, mean over seeds. {'; '.join(each)}."
