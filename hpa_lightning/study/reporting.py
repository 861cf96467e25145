"""From a study's finished cells to its report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from os import PathLike
from pathlib import Path

from hpa_lightning.report.study_report import StudyCell, StudyGroup, SweepAxis, write_study_report
from hpa_lightning.study.grid import Cell, Group, Study
from hpa_lightning.study.store import Finished, Store

_DIFFERS = "…"


def report_study(
    study: Study,
    store: Store,
    path: str | PathLike[str],
    groups: Sequence[str] | None,
    folder: str | PathLike[str],
) -> dict[str, Path]:
    """Write tables and figures of the finished cells; what is declared and not finished is listed below each table.

    Args:
        study: the study.
        store: its results.
        path: of the study file, for the command below each table.
        groups: names of the groups to show; all when ``None``.
        folder: for ``results.md``, ``results.html`` and ``figures/``.

    Returns:
        See :func:`write_study_report`.

    Raises:
        ValueError: an unknown group, or results of another configuration.
    """
    study.cells(list(groups) if groups else None)  # names an unknown group
    shown = [group for group in study.groups if not groups or group.name in groups]
    parts = [_group(group, store, _command(store, path, group.name, folder)) for group in shown]
    return write_study_report(parts, folder, study.title, study.text)


def study_cell(cell: Cell, finished: Finished) -> StudyCell:
    """A cell with its results, as tables take it."""
    start = "" if cell.after is None else cell.after.method
    return StudyCell(
        cell.method, cell.title, cell.condition, cell.seed, finished.run, cell.family, start, finished.threads
    )


def _group(group: Group, store: Store, command: str) -> StudyGroup:
    cells: list[StudyCell] = []
    seeds: dict[tuple[str, str], list[int]] = {}  # of what is missing
    for cell in group.cells:
        finished = store.finished(cell)
        if finished is None:
            seeds.setdefault((cell.title, cell.condition), []).append(cell.seed)
        else:
            cells.append(study_cell(cell, finished))
    axis = None
    if group.x is not None:
        name = group.x["setting"]
        axis = SweepAxis(
            label=group.x.get("label", name),
            values={cell.method: float(cell.values[name]) for cell in group.cells if name in cell.values},
            series=_lines([cell for cell in group.cells if name in cell.values], name),
            logarithmic=bool(group.x.get("logarithmic", False)),
        )
    columns, left_out = _measured_columns(group, cells)
    return StudyGroup(
        name=group.name,
        title=group.title,
        text="\n\n".join(part for part in (group.text, left_out) if part),
        cells=cells,
        reference=group.references,
        x=axis,
        command=command,
        missing=_missing(seeds),
        curves=group.curves,
        matrices=group.matrices,
        columns=columns,
        costs=group.costs,
    )


def _measured_columns(group: Group, cells: Sequence[StudyCell]) -> tuple[dict[str, Sequence[str]], str]:
    """The columns without the optional ones that no run can fill, and the sentence that says so."""
    known = {name for cell in cells for name in cell.run.measures}
    empty = [name for name in group.columns if name in group.optional_columns and not known & {*group.columns[name]}]
    if not cells or not empty:
        return dict(group.columns), ""
    sets = [name for heading in empty for name in group.columns[heading]]
    said = f"Left out: {', '.join(empty)}, since no run has the evaluation sets {', '.join(sets)}."
    warnings.warn(f"group {group.name!r}: {said}", stacklevel=2)
    return {heading: sets for heading, sets in group.columns.items() if heading not in empty}, said


def _command(store: Store, path: str | PathLike[str], group: str, folder: str | PathLike[str]) -> str:
    """What runs all of a group again, and what makes its tables of the runs that there are."""
    archives = f" --archive {' '.join(store.archives)}" if store.archives else ""
    run = f"hpa-lightning study run {path} --groups {group}"
    return f"{run}\n{run.replace('study run', 'study report')}{archives} --output {folder}"


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


def _missing(seeds: Mapping[tuple[str, str], list[int]]) -> list[str]:
    """What is not run, one entry for all methods of a condition that lack the same seeds.

    >>> _missing({("A", "clean"): [1, 2], ("B, 1", "clean"): [1, 2], ("C", "clean"): [2]})
    ['clean, seeds 1 2 (4 runs): A; B, 1', 'clean, seed 2 (1 run): C']
    """
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (title, condition), found in seeds.items():
        alike.setdefault((condition, tuple(found)), []).append(title)
    return [
        f"{condition}, seed{'s' * (len(found) > 1)} {' '.join(map(str, found))} ({_runs(len(found) * len(titles))}): "
        + "; ".join(titles)
        for (condition, found), titles in alike.items()
    ]
