"""Which records are dropped: how the parts of a filter vote, and what becomes of records that were not assessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from hpa_lightning.filtering.assessment import Assessment, Finding

Rule = Literal["any", "all", "votes"]
Policy = Literal["stop", "drop", "keep"]


@dataclass(frozen=True)
class FilterRule:
    """When a record is dropped.

    Args:
        rule: parts that have to find it harmful: ``"any"`` of them, ``"all"`` that had something to assess, or as many
            as ``votes``.
        votes: with ``rule="votes"``.
        no_verdict: what becomes of a record that is not dropped by the rule and of which a part could not tell: it is
            dropped, kept, or the run stops. It is counted as such in any case, never as harmless.
        unreadable: the same for a picture that cannot be opened.
        bad_records: the same for a row that cannot be read at all; it cannot be kept, since nothing that reads the
            output could read it either.

    Raises:
        ValueError: an unknown choice, or votes without the rule or below 1.
    """

    rule: Rule = "any"
    votes: int | None = None
    no_verdict: Policy = "drop"
    unreadable: Policy = "stop"
    bad_records: Literal["stop", "drop"] = "stop"

    def __post_init__(self) -> None:
        expected = {
            "rule": get_args(Rule),
            "no_verdict": get_args(Policy),
            "unreadable": get_args(Policy),
            "bad_records": ("stop", "drop"),
        }
        for name, choices in expected.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}.")
        if (self.votes is not None) != (self.rule == "votes"):
            raise ValueError(f"rule is {self.rule!r} and votes is {self.votes}; expected votes with rule: votes alone.")
        if self.votes is not None and self.votes < 1:
            raise ValueError(f"votes is {self.votes}; expected at least 1.")

    def reasons(self, findings: Mapping[str, Finding], where: str) -> list[str]:
        """Return the names of the parts for which a record is dropped; none if it is kept.

        Raises:
            ValueError: a part could not assess the record, and the policy is to stop.
        """
        by = {kind: [name for name, one in findings.items() if one.assessment is kind] for kind in Assessment}
        harmful = by[Assessment.HARMFUL]
        needed = len(findings) - len(by[Assessment.NOTHING]) if self.rule == "all" else self.votes or 1
        if harmful and len(harmful) >= needed:
            return harmful
        reasons = []
        for kind, policy in ((Assessment.UNREADABLE, self.unreadable), (Assessment.NO_VERDICT, self.no_verdict)):
            if by[kind] and policy == "stop":
                name = by[kind][0]
                option = "unreadable" if kind is Assessment.UNREADABLE else "no_verdict"
                detail = findings[name].detail.removeprefix(f"{where}: ") or "it gave no reason"
                raise ValueError(
                    f"{where}: {kind.value}, says {name!r}: {detail.rstrip('.')}. Repair the record, or say what "
                    f"becomes of such ones: {option} is 'stop', 'drop' and 'keep' are the others."
                )
            if policy == "drop":
                reasons += by[kind]
        return reasons
