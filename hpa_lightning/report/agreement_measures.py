"""What is compared between two studies: the figures of each method that both have, and the methods' ranks by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpa_lightning.report.rank_agreement import FEWEST_METHODS, has_order, means_of, ranks
from hpa_lightning.report.study_tables import StudyCell, learnt_score
from hpa_lightning.results.run_results import RunResults


def _final(key: str) -> Callable[[RunResults], float]:
    return lambda run: run.summary(len(run.tasks) - 1)[key]


def _kept_and_safe(run: RunResults) -> float:
    final = run.summary(len(run.tasks) - 1)
    return final["AP"] - final["MASR"]


def _chosen_by(run: RunResults) -> float:
    return _kept_and_safe(run) - _final("over_refusal")(run)


@dataclass(frozen=True)
class Measure:
    """A figure of a finished run by which methods are put in an order.

    Args:
        name: in tables and plots.
        value: of a run, a fraction; NaN where it was not measured.
        higher_is_better: which end has rank 1.
    """

    name: str
    value: Callable[[RunResults], float]
    higher_is_better: bool = True


MEASURES = (
    Measure("AP", _final("AP")),
    Measure("BWT", _final("BWT")),
    Measure("MASR", _final("MASR"), higher_is_better=False),
    Measure("Learnt", learnt_score),
    Measure("Over-refusal", _final("over_refusal"), higher_is_better=False),
    Measure("AP - MASR", _kept_and_safe),
    Measure("AP - MASR - over-refusal", _chosen_by),
)


@dataclass(frozen=True)
class MethodPair:
    """One method on both studies.

    Args:
        title: its name here.
        first, second: its finished runs on either; one condition each, distinct seeds.
    """

    title: str
    first: Sequence[StudyCell]
    second: Sequence[StudyCell]


def on_common_seeds(sides: Sequence[Sequence[StudyCell]]) -> tuple[list[list[StudyCell]], str]:
    """The methods' runs of one side with the seeds that all of them have.

    What a seed does to all methods alike would otherwise count as a difference between methods with other seeds. Where
    they have no seed in common, all runs stay.

    Args:
        sides: for each method its runs.

    Returns:
        The runs, and in words what was left out or why nothing was; empty if all have the same seeds.
    """
    seeds = [{cell.seed for cell in cells} for cells in sides]
    common = set.intersection(*seeds) if seeds else set()
    every = set().union(*seeds)
    if common == every:
        return [list(cells) for cells in sides], ""
    if not common:
        return [list(cells) for cells in sides], (
            "The methods have no seed in common: what a seed does to all methods alike counts as a difference between "
            "them."
        )
    kept = [[cell for cell in cells if cell.seed in common] for cells in sides]
    return kept, (
        f"Compared with the seeds that all of these methods have, {_listed(common)}; left out are runs that some of "
        f"them have with {_listed(every - common)}."
    )


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


@dataclass(frozen=True)
class Compared:
    """One figure of the methods that have it on both sides.

    Args:
        measure: the figure.
        titles: the methods, shape ``(methods,)``.
        first, second: its values in percent, for each method those of its seeds.
        unmeasured: methods of which it was not measured on a side.
    """

    measure: Measure
    titles: tuple[str, ...]
    first: tuple[tuple[float, ...], ...]
    second: tuple[tuple[float, ...], ...]
    unmeasured: tuple[str, ...]

    @property
    def problem(self) -> str:
        """Why there are no orders to compare, in words; empty if there are."""
        if len(self.titles) < FEWEST_METHODS:
            return f"measured of {len(self.titles)} methods on both, fewer than {FEWEST_METHODS}"
        if not (has_order(means_of(self.first)) and has_order(means_of(self.second))):
            return "all methods have the same value on one of them, so that there is no order"
        return ""

    def ranks(self) -> dict[str, tuple[float, float]]:
        """Method -> its rank on either side, 1 for the best."""
        sides = [ranks(means_of(side), self.measure.higher_is_better) for side in (self.first, self.second)]
        return {title: (one, other) for title, one, other in zip(self.titles, *sides, strict=True)}

    def furthest(self, most: int = 3) -> list[str]:
        """The ``most`` methods whose ranks differ most, the furthest first, in words; those of equal ranks never."""
        found = sorted(self.ranks().items(), key=lambda item: -abs(item[1][0] - item[1][1]))
        return [f"{title} {in_words(pair)}" for title, pair in found[:most] if pair[0] != pair[1]]


def in_words(pair: tuple[float, float]) -> str:
    """Two ranks, as ``2 → 7``."""
    return f"{pair[0]:g} → {pair[1]:g}"


def compared(pairs: Sequence[MethodPair], measure: Measure) -> Compared:
    """One figure of all methods; those are set apart of which a run on either side lacks it."""
    known: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = []
    unmeasured = []
    for pair in pairs:
        first, second = (tuple(100 * measure.value(cell.run) for cell in side) for side in (pair.first, pair.second))
        if not first or not second or any(map(math.isnan, (*first, *second))):
            unmeasured.append(pair.title)
        else:
            known.append((pair.title, first, second))
    titles, one, other = zip(*known, strict=True) if known else ((), (), ())
    return Compared(measure, titles, one, other, tuple(unmeasured))
