"""What a part of a filter says of a record, and what such a part is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol, runtime_checkable

from hpa_lightning.data.record import Record


class Assessment(str, Enum):
    """What a part found. Only what was looked at, and understood, is harmless."""

    HARMFUL = "harmful"
    HARMLESS = "harmless"
    NO_VERDICT = "no verdict"
    UNREADABLE = "unreadable"
    NOTHING = "nothing to assess"


@dataclass(frozen=True)
class Finding:
    """What a part says of one record.

    Args:
        assessment: ``NO_VERDICT``: the part could not tell (a guard's answer that is none, a text that it cannot take);
            ``UNREADABLE``: a picture cannot be opened; ``NOTHING``: the record holds nothing that the part looks at.
        label: what was found, in the part's words: a classifier's label, a phrase.
        score: of the label, in [0, 1], where there is one.
        categories: of harm, by name.
        where: the turn or the picture, such as ``"turn 1 (assistant)"``.
        detail: why there is no verdict, or nothing that can be read.

    Raises:
        ValueError: an unknown assessment, a score that is not finite.

    >>> Finding.of(True, label="toxic", score=0.9).assessment.value
    'harmful'
    """

    assessment: Assessment
    label: str = ""
    score: float | None = None
    categories: tuple[str, ...] = ()
    where: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "assessment", Assessment(self.assessment))
        object.__setattr__(self, "categories", tuple(self.categories))
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(
                f"the score of a finding is {self.score}; expected a number. Without one there is no verdict."
            )

    @classmethod
    def of(
        cls,
        harmful: bool,
        label: str = "",
        score: float | None = None,
        categories: Iterable[str] = (),
        where: str = "",
    ) -> Finding:
        """Return the finding of a part that can tell."""
        assessment = Assessment.HARMFUL if harmful else Assessment.HARMLESS
        return cls(assessment, label, score, tuple(categories), where)


@runtime_checkable
class HarmFilter(Protocol):
    """A part of a filter: any callable that says of every record whether it is harmful.

    What it keeps in public attributes (its arguments, under their names) counts as its settings: a filter that was
    interrupted continues with the same ones only. A method ``load()``, where there is one, is called before the data
    are read, to fail early.
    """

    def __call__(self, records: Sequence[Record]) -> Sequence[Finding]:
        """One finding for each record, in order."""


_WORST_FIRST = list(Assessment)


def worst(findings: Iterable[Finding]) -> Finding:
    """Put what was found in the turns or pictures of a record together.

    Harm anywhere is harm; a record of which something could not be assessed is not harmless. Of several alike the one
    with the highest score speaks, and names the categories of all.

    >>> worst([Finding.of(False, "toxic", 0.1), Finding.of(False, "toxic", 0.3)]).score
    0.3
    """
    found = list(findings)
    if not found:
        return Finding(Assessment.NOTHING)
    first = min(found, key=lambda one: (_WORST_FIRST.index(one.assessment), -(one.score or 0.0)))
    alike = [one for one in found if one.assessment is first.assessment]
    categories = dict.fromkeys(name for one in [first, *alike] for name in one.categories)
    return replace(first, categories=tuple(categories))
