"""Tables of a study: methods over seeds, with paired tests against a reference; percent throughout."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpa_lightning.report.run_tables import check_heading, mostly_empty_steps, summary_columns
from hpa_lightning.report.significance import NO_DIFFERENCE, estimate, holm, paired_difference
from hpa_lightning.report.study_plots import final_estimate
from hpa_lightning.results.completeness import unfinished_run
from hpa_lightning.results.run_results import RunResults, is_count
from hpa_lightning.table import Cell, Estimate, PValue, Table
from hpa_lightning.values import names

REFUSES = " †"
"""Behind the name of a method that refuses at least `REFUSING` of the harmless inputs."""
REFUSING = 0.5
BROKEN = " ‡"
"""Behind the name of a method, in every table and plot, that gave mostly empty answers after some task of some run."""

LEARNT = "Learnt %"
_COMPARED = ("AP", "BWT", "MASR")
SET_HEADINGS = {"safety": "ASR {}", "over_refusal": "over-refusal {}", "helpfulness": "{}"}


@dataclass(frozen=True)
class StudyCell:
    """One run of a study.

    Args:
        method: identifies the method, with its settings.
        title: its name in tables.
        condition: of the data, as tables call it.
        seed: pairs the runs of different methods.
        run: what it measured.
        family: the method without its settings, the same for all points of a grid; the method where it is empty.
        start: the method whose run it starts with; the base's model where it is empty.
        threads: of each process that ran it on the CPU; ``None`` where it ran elsewhere or that is not known.
    """

    method: str
    title: str
    condition: str
    seed: int
    run: RunResults
    family: str = ""
    start: str = ""
    threads: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every set was scored after every task."""
        return unfinished_run(self.run, all_tasks=True) is None


Columns = Mapping[str, Sequence[str]]
"""Heading -> the evaluation sets whose mean score is below it."""


def comparison_table(cells: Sequence[StudyCell], reference: str | None, columns: Columns | None = None) -> Table:
    """One row per method: figures after the last task over seeds, and paired differences to the reference.

    `Learnt %` is the mean score on each task right after it was learnt (the diagonal of the matrix). The differences in
    AP, BWT, MASR and the further columns are over the seeds that both methods have (`Pairs`), in percentage points;
    their p-values are those of two-sided paired t-tests, corrected after Holm over the methods of the table for each
    metric. A dash stands where there are fewer than two pairs, or where one of them lacks the figure.

    Args:
        cells: finished runs of one condition.
        reference: the method to compare with; None leaves the differences out.
        columns: further columns, such as attack success on text alone.

    Raises:
        ValueError: several conditions or streams, other evaluation sets or metrics, two runs of one method and seed, or
            a column of sets of which no run has any scores.
    """
    labels, runs = checked(cells)
    warn_of_other_numbers(cells)
    columns = columns or {}
    _check_columns(columns, cells)
    final = [column for column in summary_columns([cell.run for cell in cells]) if column[0] != "minutes"]
    rows: list[list[Cell]] = []
    for method, by_seed in runs.items():
        group = list(by_seed.values())
        learnt = estimate([100 * learnt_score(run) for run in group])
        figures = (final_estimate(group, key) for key, _, _ in final)
        means = (column_estimate(group, sets) for sets in columns.values())
        rows.append([_marked(labels[method], group), len(group), learnt, *figures, *means])
    further = [name if in_points(sets) else f"{name} %" for name, sets in columns.items()]
    headings = ["Method", "Seeds", LEARNT, *(heading for _, heading, _ in final), *further]
    if reference is None:
        return Table(headings, rows)
    differences = difference_table(cells, reference, columns)
    others = iter(differences.rows)
    for method, row in zip(runs, rows, strict=True):
        row += [math.nan] * (len(differences.columns) - 1) if method == reference else next(others)[1:]
    return Table([*headings, *differences.columns[1:]], rows)


def difference_table(cells: Sequence[StudyCell], reference: str, columns: Columns | None = None) -> Table:
    """One row for each other method: the paired differences of `comparison_table` alone.

    A dash stands where a seed of the pairs lacks the figure, as it does for the mean of the method that lacks it.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    columns = columns or {}
    _check_columns(columns, cells)
    base = runs.get(reference, {})
    others = [method for method in runs if method != reference]
    pairs = {method: [seed for seed in runs[method] if seed in base] for method in others}
    rows: list[list[Cell]] = [
        [_marked(labels[method], list(runs[method].values())), len(pairs[method])] for method in others
    ]
    compared = {**{key: _figure(key) for key in _COMPARED}, **{name: _mean(sets) for name, sets in columns.items()}}
    for value in compared.values():
        tests = [
            paired_difference([value(runs[method][seed]) for seed in seeds], [value(base[seed]) for seed in seeds])
            for method, seeds in pairs.items()
        ]
        whole = [
            found if found.pairs == len(pairs[method]) else NO_DIFFERENCE
            for method, found in zip(others, tests, strict=True)
        ]
        for row, found, p in zip(rows, whole, holm([found.p for found in whole]), strict=True):
            row += [found.difference, PValue(p)]
    return Table(["Method", "Pairs", *(heading for key in compared for heading in (f"Δ {key}", f"p ({key})"))], rows)


def _marked(label: str, runs: Sequence[RunResults]) -> str:
    return label + (REFUSES if refuses(runs) else "")


def _figure(key: str) -> Callable[[RunResults], float]:
    """A figure of the summary after the last task, percent."""
    return lambda run: 100 * run.summary(len(run.tasks) - 1)[key]


def _mean(sets: Sequence[str]) -> Callable[[RunResults], float]:
    """The mean score of sets after the last task, percent or points."""
    return lambda run: _column(run, sets, len(run.tasks) - 1)


def column_estimate(runs: Sequence[RunResults], sets: Sequence[str], step: int | None = None) -> Estimate:
    """Mean over runs and 95 % interval of the mean score of some sets; after the last task without a step.

    In percent, or points (`in_points`).
    """
    return estimate([_column(run, sets, len(run.tasks) - 1 if step is None else step) for run in runs])


def _column(run: RunResults, sets: Sequence[str], step: int) -> float:
    return (1 if in_points(sets) else 100) * run.mean_score(sets, step)


def in_points(sets: Sequence[str]) -> bool:
    """Whether the mean of these measures is in points, as those of MME, and not in percent."""
    return all(map(is_count, sets))


def set_table(cells: Sequence[StudyCell]) -> Table:
    """Score of every method on each safety, over-refusal and helpfulness set after the last task, mean ± 95 % interval.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    sets = {item["name"]: item["kind"] for cell in cells for item in cell.run.sets if item["kind"] in SET_HEADINGS}
    ordered = [name for kind in SET_HEADINGS for name in sets if sets[name] == kind]
    rows: list[list[Cell]] = [
        [labels[method], *(column_estimate(list(by_seed.values()), [name]) for name in ordered)]
        for method, by_seed in runs.items()
    ]
    return Table(["After the last task, %", *(SET_HEADINGS[sets[name]].format(name) for name in ordered)], rows)


def _check_columns(columns: Columns, cells: Sequence[StudyCell]) -> None:
    known = {name for cell in cells for name in cell.run.measures}
    for heading, sets in columns.items():
        check_heading(heading)
        if len({is_count(name) for name in sets}) > 1:
            raise ValueError(
                f"the column {heading!r} is the mean of points and shares, {names(sets)}; expected either."
            )
        if cells and (unknown := [name for name in sets if name not in known]):
            raise ValueError(
                f"the column {heading!r} is of the evaluation set {unknown[0]!r}, which no run has; they have "
                f"{names(sorted(known))}."
            )


def learnt_score(run: RunResults) -> float:
    """Mean score on each task right after it was learnt, a fraction."""
    return float(np.mean(run.learnt()))


def refuses(runs: Sequence[RunResults]) -> bool:
    """Whether at least half of the harmless inputs are refused after the last task: such a model is of little use."""
    return final_estimate(runs, "over_refusal").mean >= 100 * REFUSING


def step_table(cells: Sequence[StudyCell], key: str = "MASR") -> Table:
    """One figure of every method before the first task and after each, mean ± 95 % interval over seeds.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    tasks = list(dict.fromkeys(task for cell in cells for task in cell.run.tasks))

    def figure(run: RunResults, task: str | None) -> float:
        step = -1 if task is None else run.tasks.index(task) if task in run.tasks else None
        return math.nan if step is None else 100 * run.summary(step)[key]

    rows: list[list[Cell]] = [
        [labels[method], *(estimate([figure(run, task) for run in by_seed.values()]) for task in (None, *tasks))]
        for method, by_seed in runs.items()
    ]
    return Table([f"{key} %", start_name(cells), *(f"after {task}" for task in tasks)], rows)


def learning_table(cells: Sequence[StudyCell]) -> Table:
    """Score of every method on each task right after it was learnt, mean ± 95 % interval over seeds.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    tasks = cells[0].run.tested if cells else []
    rows: list[list[Cell]] = []
    for method, by_seed in runs.items():
        group = by_seed.values()
        diagonal = np.array([100 * run.learnt() for run in group])
        rows.append(
            [labels[method], *map(estimate, diagonal.T), estimate([100 * learnt_score(run) for run in group])],
        )
    return Table(["Right after learning, %", *tasks, "Mean"], rows)


def origin_table(cells: Sequence[StudyCell]) -> Table:
    """Which commits the runs were made with: a row for all methods whose seeds were run with the same ones.

    Raises:
        ValueError: as `comparison_table`.
    """
    labels, runs = checked(cells)
    short = short_commits([commit for cell in cells for commit in cell.run.commits])
    alike: dict[str, list[str]] = {}
    for method, by_seed in runs.items():
        seeds: dict[str, list[str]] = {}
        for seed, run in by_seed.items():
            seeds.setdefault(" then ".join(short[commit] for commit in run.commits), []).append(str(seed))
        made = "; ".join(f"{commits} (seed{'s' * (len(of) > 1)} {' '.join(of)})" for commits, of in seeds.items())
        alike.setdefault(made, []).append(labels[method])
    return Table(["Commits", "Methods"], [[made, "; ".join(of)] for made, of in alike.items()])


def short_commits(commits: Sequence[str]) -> dict[str, str]:
    """Each distinct commit, cut to as many characters (seven or more) as distinguish all of them.

    Example:
        >>> list(short_commits(["0123456789abcdef", "0123456789abcdef-dirty", "0123456fff"]).values())
        ['01234567', '01234567-dirty', '0123456f']
    """
    parts = {commit: commit.partition("-") for commit in commits}
    hashes = {head for head, _, _ in parts.values()}
    length = next(n for n in range(7, 100) if len({head[:n] for head in hashes}) == len(hashes))
    return {
        commit: commit if " " in commit else f"{head[:length]}{dash}{rest}"
        for commit, (head, dash, rest) in parts.items()
    }


def start_name(cells: Sequence[StudyCell]) -> str:
    """What the model before the first task is called: ``start`` where some run starts with another run's model."""
    return "start" if any(cell.start for cell in cells) else "aligned"


def mean_matrix_table(runs: Sequence[RunResults], start: str = "aligned") -> Table:
    """The score matrix of one method: mean ± 95 % interval over runs of the same stream.

    Args:
        runs: of the method.
        start: what the model before the first task is called.
    """
    tasks = runs[0].tasks
    scores = 100 * np.array([all_scores(run) for run in runs])
    names = [start, *(f"after {task}" for task in tasks)]
    rows: list[list[Cell]] = [[name, *map(estimate, scores[:, row].T)] for row, name in enumerate(names)]
    return Table(["%", *runs[0].tested], rows)


def all_scores(run: RunResults) -> np.ndarray:
    """Fractions, shape (1 + T, tested): the model before the first task, then after every task."""
    return np.vstack([list(run.initial().values()), run.matrix()])


def checked(cells: Sequence[StudyCell]) -> tuple[dict[str, str], dict[str, dict[int, RunResults]]]:
    """Method -> label, and method -> seed -> run, of cells that can be in one table.

    Raises:
        ValueError: several conditions or streams, other evaluation sets or metrics, or two runs of one method and seed.
    """
    for what, found in (
        ("conditions", {cell.condition for cell in cells}),
        ("streams of tasks", {tuple(cell.run.tested) for cell in cells}),
    ):
        if len(found) > 1:
            raise ValueError(f"a table compares runs of one condition and stream; got {len(found)} {what}: {found}.")
    check_same_sets(cells)
    runs: dict[str, dict[int, RunResults]] = {}
    for cell in cells:
        if cell.seed in runs.setdefault(cell.method, {}):
            raise ValueError(f"two runs of {cell.method!r} with seed {cell.seed} in {cell.condition!r}; expected one.")
        runs[cell.method][cell.seed] = cell.run
    return _labels(cells), runs


def check_same_sets(cells: Sequence[StudyCell]) -> None:
    """Check that runs that are compared were scored on the same evaluation sets, with the same metrics.

    Raises:
        ValueError: they were not.
    """
    for cell in cells[1:]:
        for what, (own, others) in {
            "kinds of the evaluation sets": (_kinds(cell.run), _kinds(cells[0].run)),
            "metrics of the evaluation sets": (_metrics(cell.run), _metrics(cells[0].run)),
        }.items():
            if differing := [name for name in {**own, **others} if own.get(name) != others.get(name)]:
                raise ValueError(
                    f"{cell.title} (seed {cell.seed}) and {cells[0].title} (seed {cells[0].seed}) cannot be compared: "
                    f"{what} {names(differing)} are {[own.get(name, 'none') for name in differing]} and "
                    f"{[others.get(name, 'none') for name in differing]}; expected runs that were scored alike."
                )


def _kinds(run: RunResults) -> dict[str, str]:
    return {item["name"]: item["kind"] for item in run.sets}


def _metrics(run: RunResults) -> dict[str, str]:
    return {name: event.metric for name, event in run.scored(len(run.tasks) - 1).items()}


def warn_of_other_numbers(cells: Sequence[StudyCell]) -> None:
    """Warn once if a set was scored with other numbers of questions in some runs than in others, where recorded."""
    counts: dict[str, dict[int, StudyCell]] = {}
    for cell in cells:
        for name, event in cell.run.scored(len(cell.run.tasks) - 1).items():
            if event.n is not None:
                counts.setdefault(name, {}).setdefault(event.n, cell)
    for name, found in counts.items():
        if len(found) > 1:
            said = ", ".join(f"{n} in {cell.title} (seed {cell.seed})" for n, cell in found.items())
            warnings.warn(
                f"runs that are compared answered other numbers of questions of {name!r}: {said}.", stacklevel=3
            )
            return


def broken_cells(cells: Sequence[StudyCell]) -> list[tuple[StudyCell, str]]:
    """The runs that gave mostly empty answers, and after which tasks, in words."""
    return [(cell, where) for cell in cells if (where := mostly_empty_steps(cell.run))]


def _labels(cells: Sequence[StudyCell]) -> dict[str, str]:
    """Method -> its title, with the method behind it where several share a title, and with the mark of broken ones."""
    titles = {cell.method: cell.title for cell in cells}
    shared = [title for title in titles.values() if list(titles.values()).count(title) > 1]
    broken = {cell.method for cell, _ in broken_cells(cells)}
    return {
        method: (f"{title} ({method})" if title in shared else title) + BROKEN * (method in broken)
        for method, title in titles.items()
    }
