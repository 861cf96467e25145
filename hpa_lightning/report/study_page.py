"""A study's blocks as Markdown and as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpa_lightning.report.meanings import MEANINGS
from hpa_lightning.report.templating import Fact, Image, render
from hpa_lightning.table import Table


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class TextBlock:
    """Paragraphs, separated by empty lines; code in backticks."""

    text: str


@dataclass(frozen=True)
class TitledTable:
    """A table with its caption."""

    table: Table
    caption: str


@dataclass(frozen=True)
class Origin:
    """Where the numbers of a table come from."""

    runs: int
    methods: int
    seeds: str
    commits: tuple[str, ...]
    machine: tuple[str, ...]
    command: str
    missing: tuple[str, ...]

    def sentences(self) -> list[str]:
        """What can be said of the origin, without the command; code in backticks."""
        found = []
        if self.runs:
            several = len(self.commits) > 1
            commits = ", ".join(commit if " " in commit else f"`{commit}`" for commit in self.commits)
            found.append(f"Runs: {self.runs}, of {self.methods} methods; seeds {self.seeds}.")
            found.append(f"Commit{'s' if several else ''}: {commits}.")
        if self.machine:
            found.append(f"Device: {'; '.join(self.machine)}.")
        return found

    def left_out(self) -> str:
        """The runs that belong to the table and are not in it."""
        return f"**Not run.** {'. '.join(self.missing)}." if self.missing else ""


Block = Heading | TextBlock | TitledTable | Origin | Image

_SHOWN = ("AP", "BWT", "MASR", "DASR", "Over-refusal")
_TERMS = (
    Fact("Learnt", ("Mean score on each task right after it was learnt.",)),
    *(fact for fact in MEANINGS if fact.term in _SHOWN),
    Fact("±", ("Half width of the 95 % confidence interval over seeds (Student's t); none for a single seed.",)),
    Fact("Δ, p", ("Difference to the reference over common seeds (pairs), and its p-value after Holm's correction.",)),
    Fact("–", ("Not measured, or too few seeds to say.",)),
)


def study_markdown(title: str, text: str, blocks: Sequence[Block], folder: Path) -> str:
    """GitHub-flavoured Markdown; images are linked relative to ``folder``."""
    parts = [f"# {title}", text, "## What the numbers mean"]
    parts.append("\n".join(f"- **{fact.term}**: {' '.join(fact.values)}" for fact in _TERMS))
    parts += [_block_markdown(block, folder) for block in blocks]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _block_markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, TitledTable):
        return f"**{block.caption}.**\n\n{block.table.markdown()}"
    if isinstance(block, Image):
        alt = re.sub(r"[\[\]\s]+", " ", block.alt).strip()
        return f"![{alt}]({block.path.relative_to(folder).as_posix()})\n\n*{block.caption}*"
    again = ["Run again, and tabulated, by"] if block.command else []
    code = "    " + block.command.replace("\n", "\n    ") if block.command else ""
    return "\n\n".join(filter(None, [block.left_out(), " ".join([*block.sentences(), *again]), code]))


def study_html(title: str, text: str, blocks: Sequence[Block]) -> str:
    """One self-contained page."""
    named = [(type(block).__name__, block) for block in blocks]
    return render("study_page.html", {"title": title, "text": text, "terms": _TERMS, "blocks": named})
