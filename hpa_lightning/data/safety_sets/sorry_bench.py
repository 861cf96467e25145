"""SORRY-Bench: unsafe instructions of 44 categories, each in several styles of writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.safety_sets.prompts import PromptFile
from hpa_lightning.values import names, shown

CATEGORIES: dict[str, tuple[str, ...]] = {
    "Hate Speech Generation": (
        "Personal Insulting Words",
        "Social-group Insulting Words",
        "Threatening Words",
        "Lewd and Obscene Words",
        "Libelous Words",
    ),
    "Assistance with Crimes or Torts": (
        "Self-Harm",
        "Violent Crimes",
        "Harassment",
        "Sexual Crimes",
        "Property Crimes",
        "Public Order Crimes",
        "System Intrusion",
        "Malware Code Generation",
        "Fraud",
        "Financial Crimes",
        "IP Infringement",
        "PII Violations",
        "Illegal Crafting",
        "Terrorism",
        "Child-related Crimes",
        "Animal-related Crimes",
        "Environmental Crimes",
        "Evasion of Law Enforcement",
        "Human Elimination",
    ),
    "Potentially Inappropriate Topics": (
        "Advice on Adult Content",
        "Sexual Explicit Content Generation",
        "Non-sexual Explicit Content Generation",
        "Fake News Generation",
        "False Advertising",
        "Advice on Discrimination Behaviors",
        "Military Use",
        "Political Belief Promotion",
        "Ethical Belief Promotion",
        "Religion Promotion",
        "Social Stereotype Promotion",
        "Extremist Content Promotion",
        "Conspiracy Theories Promotion",
        "False Common Knowledge Promotion",
        "Harmful & Unhealthy Behaviors Promotion",
    ),
    "Potentially Unqualified Advice": (
        "Medical Advice",
        "Financial Advice",
        "Legal Consulting Advice",
        "Governance Decision Advice",
        "Dangerous Machinery Operation Advice",
    ),
}
"""Domain -> its categories, which the files of version 2025-03 number from 1 on in this order."""

_NAMED = [(category, domain) for domain, categories in CATEGORIES.items() for category in categories]


@dataclass(frozen=True)
class SORRYBench(RecordSet):
    """The instructions of SORRY-Bench (Xie et al., ICLR 2025, arXiv 2406.14598), all of them unsafe.

    The categories are ``domain``, ``category`` and ``style``.

    Args:
        file: upstream's JSON lines or a CSV of them: ``question_id``, ``category``, ``turns``, ``prompt_style``.
        styles: values of ``prompt_style``; ``["base"]`` are the 440 instructions as they were written, ``None`` takes
            all.
        numbered: the categories are numbers of version 2025-03 and get their names. ``False``: they stay as they
            stand, as version 2024-06 needs it, which numbers 45 others.

    Raises:
        ValueError: when read: a missing file, a broken row, a number that is no category, a style that the file does
            not have.
    """

    file: str
    styles: Sequence[str] | None = ("base",)
    numbered: bool = True

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        records = PromptFile(self.file, "turns", category_columns=["category", "prompt_style"]).read()
        there = dict.fromkeys(record.categories.get("prompt_style", "") for record in records)
        wanted = list(there) if self.styles is None else list(self.styles)
        if unknown := [style for style in wanted if style not in there]:
            raise ValueError(f"{Path(self.file).name} has no prompts of style {names(unknown)}; it has {names(there)}.")
        return [self._named(record) for record in records if record.categories.get("prompt_style", "") in wanted]

    def _named(self, record: Record) -> Record:
        style, category = record.categories.get("prompt_style", ""), record.categories.get("category", "")
        found = {"category": category, "style": style}
        if self.numbered:
            if not category.isdigit() or not 1 <= int(category) <= len(_NAMED):
                raise ValueError(
                    f"{record.where}: the category is {shown(category)}; expected a number from 1 to {len(_NAMED)} "
                    "(version 2025-03). For version 2024-06, or names, pass numbered=False."
                )
            name, domain = _NAMED[int(category) - 1]
            found = {"domain": domain, "category": name, "style": style}
        return replace(record, categories={scheme: value for scheme, value in found.items() if value})
