"""From two studies' finished cells to how far they agree on the order of methods."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from hpa_lightning.report.agreement_measures import MethodPair, on_common_seeds
from hpa_lightning.report.agreement_page import AgreementSection
from hpa_lightning.report.study_tables import StudyCell
from hpa_lightning.study.grid import Study
from hpa_lightning.study.pairs_file import PairsFile, Selection, Side
from hpa_lightning.study.reporting import study_cell
from hpa_lightning.study.store import Store
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
        ValueError: a method, group or condition that a study does not have, or results of another configuration.
        OSError: a study or an archive cannot be read.
    """
    first = _found(pairs.first, [pair.first for pair in pairs.pairs])
    second = _found(pairs.second, [pair.second for pair in pairs.pairs])
    again = f"hpa-lightning study agree {path}" + (f" --output {output}" if output is not None else "")
    sections = []
    for one, by_first in zip(pairs.first.selections, first, strict=True):
        for other, by_second in zip(pairs.second.selections, second, strict=True):
            both = [MethodPair(pair.title, by_first[pair.first], by_second[pair.second]) for pair in pairs.pairs]
            left_out = [
                f"{selection.title}: {'; '.join(absent)}"
                for selection, absent in (
                    (one, [pair.title for pair in both if not pair.first]),
                    (other, [pair.title for pair in both if not pair.second]),
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


def _found(side: Side, methods: Sequence[str]) -> list[dict[str, list[StudyCell]]]:
    """For each selection of a study: method -> its finished cells."""
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
    return [_selected(study, store, selection, methods, side) for selection in side.selections]


def _selected(
    study: Study, store: Store, selection: Selection, methods: Sequence[str], side: Side
) -> dict[str, list[StudyCell]]:
    where = f"{side.study}, {selection.title}"
    groups = {group.name: group for group in study.groups}
    if unknown := [name for name in selection.groups if name not in groups]:
        raise ValueError(f"{where}: the study has no group {unknown[0]!r}; its groups are {names(groups)}.")
    chosen = [groups[name] for name in selection.groups] or list(study.groups)
    conditions = dict.fromkeys(cell.condition for group in chosen for cell in group.cells)
    if selection.condition not in conditions:
        raise ValueError(
            f"{where}: no cell of these groups has the condition {selection.condition!r}; there are "
            f"{names(conditions)}."
        )
    found: dict[str, dict[int, StudyCell]] = {method: {} for method in methods}
    for cell in (cell for group in chosen for cell in group.cells):
        wanted = cell.condition == selection.condition and (not selection.seeds or cell.seed in selection.seeds)
        if wanted and cell.method in found and cell.seed not in found[cell.method]:
            finished = store.finished(cell)
            shown_cell = None if finished is None else study_cell(cell, finished)
            if shown_cell is not None and shown_cell.finished:
                found[cell.method][cell.seed] = shown_cell
    return {method: list(by_seed.values()) for method, by_seed in found.items()}


def _run(side: Side, selection: Selection) -> str:
    groups = f" --groups {' '.join(selection.groups)}" if selection.groups else ""
    return f"hpa-lightning study run {side.study}{groups}"
