"""The page that says whether two studies put the same methods in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

from hpa_lightning.report.agreement_measures import MEASURES, Compared, MethodPair, compared, in_words
from hpa_lightning.report.agreement_plot import plot_agreement
from hpa_lightning.report.judges import warn_of_mixed_judges
from hpa_lightning.report.meanings import MEANINGS
from hpa_lightning.report.rank_agreement import FEWEST_METHODS, PERMUTATIONS, Agreement, rank_agreement
from hpa_lightning.report.study_page import Block, Heading, TextBlock, TitledTable, origin_of, write_page
from hpa_lightning.report.study_tables import StudyCell, check_same_sets, warn_of_other_numbers
from hpa_lightning.report.style import save_figure, slugs
from hpa_lightning.report.templating import Fact, Image
from hpa_lightning.table import MISSING, Cell, PValue, Table

_CAPTION = (
    "Does the order of methods on {first} tell that on {second}? Kendall's tau-b of the means over seeds, with its "
    "95 % interval (bootstrap over methods and over the seeds of each); p is two-sided, for these methods, and not "
    "corrected for the number of figures"
)
_MANY_WITHOUT_ORDER = 0.05
_RANKS = "Rank of each method, {first} → {second}; 1 is best"
_TERMS = (
    Fact(
        "Kendall's tau",
        (
            "1: both put the methods in the same order; -1: in the reverse one; 0: the one order tells nothing of the "
            "other.",
        ),
    ),
    Fact(
        "95 %",
        (
            "A resample draws n - 1 of the n seeds of each method on each side, and then as many methods as there are. "
            "With few methods the interval is rough, and too short where tau is near 1 or -1; where a method has one "
            "seed it tells nothing of seeds.",
        ),
    ),
    Fact(
        "p",
        (
            "How often tau is as far from 0 between orders that have nothing to do with each other: of all orders of "
            "the methods, or of drawn ones where it is said.",
        ),
    ),
    Fact("Learnt", ("Mean score on each task right after it was learnt.",)),
    *(fact for fact in MEANINGS if fact.term in ("AP", "BWT", "MASR", "Over-refusal")),
    Fact("–", ("Not measured, or too few to say.",)),
)


@dataclass(frozen=True)
class AgreementSection:
    """Two sets of runs of the same methods.

    Args:
        first, second: what the runs are of, in tables and plots; also parts of the figure's file name.
        pairs: the methods that both have.
        left_out: in words, methods of which one side has no finished run.
        command: what makes the section again.
        seeds: in words, where methods have different seeds on a side, which of them are compared.
    """

    first: str
    second: str
    pairs: Sequence[MethodPair]
    left_out: Sequence[str] = ()
    command: str = ""
    seeds: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{self.first} and {self.second}"

    @property
    def first_cells(self) -> list[StudyCell]:
        """All runs of the first side."""
        return [cell for pair in self.pairs for cell in pair.first]

    @property
    def second_cells(self) -> list[StudyCell]:
        """All runs of the second side."""
        return [cell for pair in self.pairs for cell in pair.second]

    @cached_property
    def figures(self) -> list[Compared]:
        """The figures that some method has on both sides."""
        return [item for item in (compared(self.pairs, measure) for measure in MEASURES) if item.titles]

    @cached_property
    def agreements(self) -> list[tuple[Compared, Agreement]]:
        """The figures that put methods in an order on both sides, and how far the orders agree."""
        return [(item, rank_agreement(item.first, item.second)) for item in self.figures if not item.problem]

    @property
    def problem(self) -> str:
        """Why nothing can be compared, in words; empty if something can."""
        if len(self.pairs) < FEWEST_METHODS:
            return (
                f"{len(self.pairs)} methods have finished runs on both; {FEWEST_METHODS} are needed to compare orders."
            )
        if not self.agreements:
            return " ".join(_unordered(self)) or "No figure was measured on both."
        return ""


def agreement_table(section: AgreementSection) -> Table:
    """One row for each figure that puts the methods in an order on both sides.

    Columns: number of methods, Kendall's tau-b, the ends of its 95 % interval, p, and the methods whose ranks differ
    most (first → second, 1 is best). See `rank_agreement` for what the interval and p are.
    """
    rows: list[list[Cell]] = [
        [
            item.measure.name,
            found.methods,
            found.tau,
            found.low,
            found.high,
            PValue(found.p),
            "; ".join(item.furthest()) or MISSING,
        ]
        for item, found in section.agreements
    ]
    return Table(["Figure", "Methods", "Kendall's tau", "95 % from", "to", "p", "Ranked most differently"], rows)


def rank_table(section: AgreementSection) -> Table:
    """The ranks of every method by every figure on both sides, and its numbers of seeds."""
    ranked = [item.ranks() for item, _ in section.agreements]
    rows: list[list[Cell]] = [
        [
            pair.title,
            f"{len(pair.first)}, {len(pair.second)}",
            *(in_words(of[pair.title]) if pair.title in of else MISSING for of in ranked),
        ]
        for pair in section.pairs
    ]
    return Table(["Method", "Seeds", *(item.measure.name for item, _ in section.agreements)], rows)


def notes(section: AgreementSection) -> list[str]:
    """What the table does not say of itself: seeds, ties, what was not measured or has no order."""
    found = list(section.seeds)
    for name, sides in (
        (section.first, [(pair.title, pair.first) for pair in section.pairs]),
        (section.second, [(pair.title, pair.second) for pair in section.pairs]),
    ):
        if single := [title for title, cells in sides if len(cells) == 1]:
            whose = "all methods" if len(single) == len(sides) else "; ".join(single)
            found.append(f"A single seed on {name}: {whose}. The interval tells nothing of seeds there.")
    if drawn := [item.measure.name for item, agreement in section.agreements if agreement.drawn]:
        found.append(f"p is of {PERMUTATIONS} drawn orders, since some methods are equal: {', '.join(drawn)}.")
    for item, agreement in section.agreements:
        if agreement.without_order > _MANY_WITHOUT_ORDER:
            found.append(
                f"{item.measure.name}: {100 * agreement.without_order:.0f} % of the resamples have no order on a side; "
                "the interval is of the others."
            )
    for item in section.figures:
        if item.unmeasured:
            found.append(f"{item.measure.name} was not measured on both: {'; '.join(item.unmeasured)}.")
    return [*found, *_unordered(section)]


def _unordered(section: AgreementSection) -> list[str]:
    return [f"No tau for {item.measure.name}: {item.problem}." for item in section.figures if item.problem]


def check_comparable(sections: Sequence[AgreementSection]) -> None:
    """Check that at least one section has something to compare, and that the runs of each side were scored alike.

    What is doubtful is warned of: other numbers of questions, or other judges, on one side.

    Raises:
        ValueError: none has, it names what is missing; or runs of one side with other sets or metrics.
    """
    if not any(not section.problem for section in sections):
        reasons = [
            f"{section.title}: {section.problem}"
            + (f" Left out: {'. '.join(section.left_out)}." if section.left_out else "")
            for section in sections
        ]
        raise ValueError(f"nothing to compare. {' '.join(reasons)}")
    for section in sections:
        for cells in () if section.problem else (section.first_cells, section.second_cells):
            check_same_sets(cells)
            warn_of_other_numbers(cells)
            warn_of_mixed_judges(cell.run for cell in cells)


def agreement_text(sections: Sequence[AgreementSection]) -> str:
    """The tables for a terminal.

    Raises:
        ValueError: as `check_comparable`.
    """
    check_comparable(sections)
    parts = []
    for section in sections:
        lines = [section.title]
        lines += [section.problem] if section.problem else ["", agreement_table(section).text(), "", *notes(section)]
        lines += [f"Left out: {'. '.join(section.left_out)}."] if section.left_out else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_agreement(
    sections: Sequence[AgreementSection], folder: str | PathLike[str], title: str, text: str = ""
) -> dict[str, Path]:
    """Write ``agreement.md``, with images beside it in ``figures/``, and ``agreement.html``, which holds all of it.

    Args:
        sections: one for each two sets of runs.
        folder: made if need be; files of the same name are replaced, but for what was written by hand (`write_page`).
        title, text: heading and introduction.

    Returns:
        ``"markdown"``, ``"html"`` and every figure under its file name without ``.png``.

    Raises:
        ValueError: as `check_comparable`.
    """
    check_comparable(sections)
    titles = dict.fromkeys(pair.title for section in sections for pair in section.pairs)
    styles = {title: number for number, title in enumerate(titles)}

    def blocks(figures: Path) -> list[Block]:
        found: list[Block] = []
        for section, name in zip(sections, slugs([section.title for section in sections]), strict=True):
            found += _section(section, figures / f"{name}.png", styles)
        return found

    return write_page(blocks, folder, "agreement", title, text, _TERMS)


def _section(section: AgreementSection, path: Path, styles: Mapping[str, int]) -> list[Block]:
    origins = [
        origin_of(section.first_cells, "", (), section.first),
        origin_of(section.second_cells, section.command, section.left_out, section.second),
    ]
    heading = Heading(2, section.title)
    if section.problem:
        return [heading, TextBlock(section.problem), *origins]
    save_figure(plot_agreement(section.agreements, section.first, section.second, styles), path)
    names = {"first": section.first, "second": section.second}
    caption = (
        "Each method's figures on both, mean over seeds; thin lines: from the lowest to the highest seed; hollow: a "
        "single seed on a side. The upper right is best."
    )
    alt = f"One panel for each figure, {section.first} along x and {section.second} along y; the tables hold the ranks."
    return [
        heading,
        TitledTable(agreement_table(section), _CAPTION.format(**names)),
        TextBlock("\n\n".join(notes(section))),
        *origins,
        Image(path, caption, alt),
        TitledTable(rank_table(section), _RANKS.format(**names)),
    ]
