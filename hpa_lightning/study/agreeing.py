"""From two studies' finished cells to how far they agree on the order of methods."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from hpa_lightning.report.agreement_measures import MethodPair, on_common_seeds
from hpa_lightning.report.agreement_page import AgreementSection
from hpa_lightning.report.study_tables import StudyCell
from hpa_lightning.study.grid import Study
from hpa_lightning.study.pairs_file import PairsFile, Selection, Side
from hpa_lightning.study.reporting import study_cell
from hpa_lightning.study.store import Store, store_options
from hpa_lightning.study.study_file import read_study
from hpa_lightning.values import names, nearest, shown


def agreement_sections(
    pairs: PairsFile, path: str | PathLike[str], output: str | PathLike[str] | None = None
) -> list[AgreementSection]:
    """Gather the finished cells of the paired methods: a section for each two selections of the first and the second.

    Args:
        pairs: what to compare.
        path: of the pairs file, for the command below the tables.
        output: folder of the page, for the same.

    Raises:
        ValueError: a method, group, condition or seed that a study does not have, or results of another configuration.
        OSError: a study or an archive cannot be read.
    """
    first = _found(pairs.first, [pair.first for pair in pairs.pairs])
    second = _found(pairs.second, [pair.second for pair in pairs.pairs])
    options = [] if output is None else ["--output", str(output)]
    again = shlex.join(["hpa-lightning", "study", "agree", str(path), *options])
    sections = []
    for one, of_one in zip(pairs.first.selections, first, strict=True):
        for other, of_other in zip(pairs.second.selections, second, strict=True):
            both = [
                MethodPair(pair.title, of_one.cells[pair.first], of_other.cells[pair.second]) for pair in pairs.pairs
            ]
            left_out = [
                f"{selection.title}: {'; '.join(absent)}"
                for selection, absent in (
                    (one, [pair.title for pair in both if not pair.first] + of_one.not_whole),
                    (other, [pair.title for pair in both if not pair.second] + of_other.not_whole),
                )
                if absent
            ]
            command = "\n".join([_run(pairs.first, one), _run(pairs.second, other), again])
            whole, seeds = _on_common_seeds([pair for pair in both if pair.first and pair.second], one, other)
            sections.append(AgreementSection(one.title, other.title, whole, left_out, command, seeds))
    return sections


def _on_common_seeds(
    pairs: Sequence[MethodPair], one: Selection, other: Selection
) -> tuple[list[MethodPair], list[str]]:
    first, of_first = on_common_seeds([pair.first for pair in pairs])
    second, of_second = on_common_seeds([pair.second for pair in pairs])
    narrowed = [MethodPair(pair.title, *cells) for pair, *cells in zip(pairs, first, second, strict=True)]
    said = [f"{side.title}: {what}" for side, what in ((one, of_first), (other, of_second)) if what]
    return narrowed, said


@dataclass(frozen=True)
class _Selected:
    """Method -> its finished cells; and in words, those whose results lack something."""

    cells: dict[str, list[StudyCell]]
    not_whole: list[str]


def _found(side: Side, methods: Sequence[str]) -> list[_Selected]:
    """What there is of each selection of a study."""
    study = read_study(side.study)
    known = dict.fromkeys(cell.method for group in study.groups for cell in group.cells)
    for method in methods:
        if method not in known:
            family = [name for name in known if name.partition("[")[0] == method.partition("[")[0]]
            raise ValueError(
                f"{side.study}: no group has the method {shown(method)}{nearest(method, known)}; there are "
                f"{names(family or known)}."
            )
    store = Store(side.store, side.archives)
    store.warn_of_other_archives(study)
    return [_selected(study, store, selection, methods, side) for selection in side.selections]


def _selected(study: Study, store: Store, selection: Selection, methods: Sequence[str], side: Side) -> _Selected:
    where = f"{side.study}, {selection.title}"
    groups = {group.name: group for group in study.groups}
    if unknown := [name for name in selection.groups if name not in groups]:
        raise ValueError(f"{where}: the study has no group {unknown[0]!r}; its groups are {names(groups)}.")
    chosen = [groups[name] for name in selection.groups] or list(study.groups)
    cells = [cell for group in chosen for cell in group.cells]
    conditions = dict.fromkeys(cell.condition for cell in cells)
    if selection.condition not in conditions:
        raise ValueError(
            f"{where}: no cell of these groups has the condition {selection.condition!r}; there are "
            f"{names(conditions)}."
        )
    cells = [cell for cell in cells if cell.condition == selection.condition]
    seeds = {cell.seed for cell in cells}
    if unknown_seeds := [seed for seed in selection.seeds if seed not in seeds]:
        raise ValueError(
            f"{where}: no cell of these groups has the seed {unknown_seeds[0]} in {selection.condition!r}; there are "
            f"{names(sorted(seeds))}."
        )
    found: dict[str, list[StudyCell]] = {method: [] for method in methods}
    not_whole = []
    wanted = {cell.key: cell for cell in cells if cell.method in found and cell.seed in (selection.seeds or seeds)}
    for cell in wanted.values():  # each once, though it may be in several groups
        if (finished := store.finished(cell)) is not None:
            found[cell.method].append(study_cell(cell, finished))
        elif reason := store.lacks(cell):
            not_whole.append(f"{cell.method}, seed {cell.seed} ({reason})")
    return _Selected(found, not_whole)


def _run(side: Side, selection: Selection) -> str:
    groups = ["--groups", *selection.groups] if selection.groups else []
    run = ["hpa-lightning", "study", "run", str(side.study), *groups, *store_options(side.store, side.study)]
    return shlex.join(run)
