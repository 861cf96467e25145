"""From a study's finished cells to its report."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from os import PathLike
from pathlib import Path

from hpa_lightning.report.study_report import StudyCell, StudyGroup, SweepAxis, write_study_report
from hpa_lightning.study.grid import Cell, Group, Study
from hpa_lightning.study.store import Finished, Store, store_options

_DIFFERS = "…"


def report_study(
    study: Study,
    store: Store,
    path: str | PathLike[str],
    groups: Sequence[str] | None,
    folder: str | PathLike[str],
    command: str | None = None,
) -> dict[str, Path]:
    """Write tables and figures of the finished cells; what is declared and not finished is listed below each table.

    Args:
        study: the study.
        store: its results.
        path: of the study file, for the commands below each table.
        groups: names of the groups to show; all when ``None``.
        folder: for ``results.md``, ``results.html`` and ``figures/``.
        command: what is below each table instead, where the study is not in a file.

    Returns:
        See :func:`write_study_report`.

    Raises:
        ValueError: an unknown group, or results of another configuration.
    """
    study.cells(list(groups) if groups else None)  # names an unknown group
    shown = [group for group in study.groups if not groups or group.name in groups]
    parts = [_group(group, store, command or _command(store, path, group.name, folder)) for group in shown]
    return write_study_report(parts, folder, study.title, study.text)


def study_cell(cell: Cell, finished: Finished) -> StudyCell:
    """A cell with its results, as tables take it."""
    start = "" if cell.after is None else cell.after.method
    return StudyCell(
        cell.method, cell.title, cell.condition, cell.seed, finished.run, cell.family, start, finished.threads
    )


def _group(group: Group, store: Store, command: str) -> StudyGroup:
    cells: list[StudyCell] = []
    not_run: list[Cell] = []
    not_whole: list[str] = []
    for cell in group.cells:
        if (finished := store.finished(cell)) is not None:
            cells.append(study_cell(cell, finished))
        elif reason := store.lacks(cell):
            not_whole.append(f"{_title(cell, group)}, {cell.condition}, seed {cell.seed} (run, but {reason})")
        else:
            not_run.append(cell)
    axis = None
    if group.x is not None:
        name = group.x["setting"]
        axis = SweepAxis(
            label=group.x.get("label", name),
            values={cell.method: float(cell.values[name]) for cell in group.cells if name in cell.values},
            series=_lines([cell for cell in group.cells if name in cell.values], name),
            logarithmic=bool(group.x.get("logarithmic", False)),
        )
    without, left_out = _left_out_columns(group, cells)
    return StudyGroup(
        name=group.name,
        title=group.title,
        text="\n\n".join(part for part in (group.text, left_out) if part),
        cells=cells,
        reference=group.references,
        x=axis,
        command=command,
        missing=[*_missing(not_run, group), *not_whole],
        curves=group.curves,
        matrices=group.matrices,
        columns=group.columns,
        without=without,
        costs=group.costs,
    )


def _left_out_columns(group: Group, cells: Sequence[StudyCell]) -> tuple[dict[str, list[str]], str]:
    """Condition -> the optional columns that no run of it can fill, and the sentences that say so."""
    without: dict[str, list[str]] = {}
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    where: dict[tuple[str, str], list[str]] = {}  # headings and absent sets, in words -> conditions
    for condition in conditions:
        known = {name for cell in cells if cell.condition == condition for name in cell.run.measures}
        absent = {heading: [name for name in sets if name not in known] for heading, sets in group.columns.items()}
        absent = {heading: sets for heading, sets in absent.items() if sets and heading in group.optional_columns}
        if absent:
            without[condition] = list(absent)
            sets = ", ".join(name for of in absent.values() for name in of)
            where.setdefault((", ".join(absent), sets), []).append(condition)
    said = []
    for (headings, sets), found in where.items():
        of = "" if found == conditions else f" of {', '.join(found)}"
        said.append(f"Left out{of}: {headings}, since no run{of} has the evaluation sets {sets}.")
    if said:
        warnings.warn(f"group {group.name!r}: {' '.join(said)}", stacklevel=2)
    return without, " ".join(said)


def _command(store: Store, path: str | PathLike[str], group: str, folder: str | PathLike[str]) -> str:
    """What runs all of a group again, and what makes its tables of the runs that there are."""
    study = [str(path), "--groups", group, *store_options(store.root, path)]
    archives = ["--archive", *store.archives] if store.archives else []
    run = ["hpa-lightning", "study", "run", *study]
    report = ["hpa-lightning", "study", "report", *study, *archives, "--output", str(folder)]
    return f"{shlex.join(run)}\n{shlex.join(report)}"


def _lines(cells: Sequence[Cell], axis: str) -> dict[str, str]:
    """Method -> name of its line: of a grid with more axes, each of their points is a line."""
    others = {
        cell.method: (cell.family, *(f"{key}={value}" for key, value in cell.values.items() if key != axis))
        for cell in cells
    }
    titles: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        titles.setdefault(others[cell.method], []).append(cell.title)
    names = {line: _shared_words(found) for line, found in titles.items()}
    if len(set(names.values())) < len(names):  # titles that do not distinguish the lines
        names = {line: ", ".join(line) for line in names}
    return {method: names[line] for method, line in others.items()}


def _shared_words(titles: Sequence[str]) -> str:
    """The titles as one, with an ellipsis where their words differ.

    >>> _shared_words(["Kept 5 % of all", "Kept 10 % of all"]), _shared_words(["Kept 5 %", "Kept all"])
    ('Kept … % of all', 'Kept …')
    """
    columns = zip_longest(*(title.split() for title in titles))
    shared = [words[0] if len(set(words)) == 1 else _DIFFERS for words in columns]
    return " ".join(word for word, last in zip(shared, ["", *shared], strict=False) if word != _DIFFERS or word != last)


def _runs(number: int) -> str:
    return f"{number} run{'s' * (number > 1)}"


def _title(cell: Cell, group: Group) -> str:
    """The method's title, with its name behind it where the group has another method of that title."""
    shared = any(other.title == cell.title and other.method != cell.method for other in group.cells)
    return f"{cell.title} ({cell.method})" if shared else cell.title


def _missing(cells: Sequence[Cell], group: Group) -> list[str]:
    """What is not run, one entry for all methods of a condition that lack the same seeds."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for cell in cells:
        seeds.setdefault((_title(cell, group), cell.condition), []).append(cell.seed)
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (title, condition), found in seeds.items():
        alike.setdefault((condition, tuple(found)), []).append(title)
    return [
        f"{condition}, seed{'s' * (len(found) > 1)} {' '.join(map(str, found))} ({_runs(len(found) * len(titles))}): "
        + "; ".join(titles)
        for (condition, found), titles in alike.items()
    ]
