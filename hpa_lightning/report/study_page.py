"""A study's blocks as Markdown and as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from hpa_lightning.files import staged
from hpa_lightning.report.meanings import MEANINGS
from hpa_lightning.report.run_tables import seed_label
from hpa_lightning.report.study_tables import StudyCell, short_commits
from hpa_lightning.report.templating import Fact, Image, render
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Table

BY_HAND = "<!-- Below: by hand, kept when the page is made again. -->"
"""What stands in a page of Markdown from this line on is kept."""


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
    """Where the numbers of a table come from; ``study`` names the one of several that it tells of."""

    runs: int
    methods: int
    seeds: str
    commits: tuple[str, ...]
    machine: tuple[str, ...]
    command: str
    missing: tuple[str, ...]
    study: str = ""

    def sentences(self) -> list[str]:
        """What can be said of the origin, without the command; code in backticks."""
        found = []
        if self.runs:
            several = len(self.commits) > 1
            commits = ", ".join(commit if " " in commit else f"`{commit}`" for commit in self.commits)
            whose = f" of {self.study}" if self.study else ""
            found.append(f"Runs{whose}: {self.runs}, of {self.methods} methods; seeds {self.seeds}.")
            found.append(f"Commit{'s' if several else ''}: {commits}.")
        if self.machine:
            found.append(f"Device: {'; '.join(self.machine)}.")
        return found

    def left_out(self) -> str:
        """The runs that belong to the table and are not in it."""
        return f"**Not run.** {'. '.join(self.missing)}." if self.missing else ""


Block = Heading | TextBlock | TitledTable | Origin | Image


def origin_of(cells: Sequence[StudyCell], command: str, missing: Sequence[str], study: str = "") -> Origin:
    """Where numbers come from that were made of these runs.

    Args:
        cells: the runs.
        command: what makes them and their tables again; may have several lines.
        missing: runs that belong here and do not exist, in words.
        study: which of several studies they are of.
    """
    runs = [cell.run for cell in cells]
    seeds = sorted({cell.seed for cell in cells})
    return Origin(
        runs=len(runs),
        methods=len({cell.method for cell in cells}),
        seeds=", ".join(map(seed_label, seeds)),
        commits=tuple(short_commits([commit for run in runs for commit in run.commits]).values()),
        machine=tuple(dict.fromkeys(filter(None, map(_machine, runs)))),
        command=command,
        missing=tuple(missing),
        study=study,
    )


def _machine(run: RunResults) -> str:
    """Device, precision and number of threads, as far as the run recorded them."""
    known = {**(run.about.versions or {}), **run.about.extra}
    parts = [str(known[key]) for key in ("device", "precision") if known.get(key)]
    parts += [f"{key} {known[key]}" for key in ("devices", "threads") if known.get(key)]
    return ", ".join(parts)


_SHOWN = ("AP", "BWT", "MASR", "DASR", "Over-refusal")
_SHOWN_IN_A_TABLE = ("Helpfulness", "Empty", "Cut", "No option")  # explained where a table of the page has the column
_TERMS = (
    Fact("Learnt", ("Mean score on each task right after it was learnt.",)),
    *(fact for fact in MEANINGS if fact.term in _SHOWN + _SHOWN_IN_A_TABLE),
    Fact("±", ("Half width of the 95 % confidence interval over seeds (Student's t); none for a single seed.",)),
    Fact("Δ, p", ("Difference to the reference over common seeds (pairs), and its p-value after Holm's correction.",)),
    Fact("–", ("Not measured, or too few seeds to say.",)),
)


def write_page(
    blocks_in: Callable[[Path], Sequence[Block]],
    folder: str | PathLike[str],
    name: str,
    title: str,
    text: str,
    terms: Sequence[Fact] = _TERMS,
) -> dict[str, Path]:
    """Write ``NAME.md``, with images beside it in ``figures/``, and ``NAME.html``, which holds all of it.

    Args:
        blocks_in: makes the blocks, and their images in the folder that it is given.
        folder: made if need be; files of the same name are replaced, but for what stands in ``NAME.md`` from `BY_HAND`
            on.
        name: of the two files.
        title, text: heading and introduction.
        terms: what the page explains before its first block; columns that not every page has where a table has them.

    Returns:
        ``"markdown"``, ``"html"`` and every figure under its file name without ``.png``.

    Raises:
        ValueError: two figures of one name.
    """
    files = {"markdown": f"{name}.md", "html": f"{name}.html"}
    with staged(folder, last=[*files.values()]) as inside:
        (inside / "figures").mkdir()
        blocks = blocks_in(inside / "figures")
        images = [block.path for block in blocks if isinstance(block, Image)]
        if twice := [path.name for number, path in enumerate(images) if path in images[:number]]:
            raise ValueError(
                f"two figures of the page would be called {twice[0]}; give a group or a method another name."
            )
        paths = {path.stem: path for path in images}
        terms = _terms_of(blocks, terms)
        markdown = study_markdown(title, text, blocks, inside, terms) + _kept(Path(folder) / files["markdown"])
        for key, content in (("markdown", markdown), ("html", study_html(title, text, blocks, terms))):
            paths[key] = inside / files[key]
            paths[key].write_text(content, encoding="utf-8")
    return {key: Path(folder) / path.relative_to(inside) for key, path in paths.items()}


def _terms_of(blocks: Sequence[Block], terms: Sequence[Fact]) -> list[Fact]:
    tables = [block.table for block in blocks if isinstance(block, TitledTable)]
    columns = {heading.removesuffix(" %") for table in tables for heading in table.columns}
    return [fact for fact in terms if fact.term not in _SHOWN_IN_A_TABLE or fact.term in columns]


def _kept(page: Path) -> str:
    """What was written by hand below the tables of an earlier page."""
    _, mark, rest = (page.read_text(encoding="utf-8") if page.is_file() else "").partition(BY_HAND)
    return f"\n{mark}{rest}" if mark else ""


def study_markdown(title: str, text: str, blocks: Sequence[Block], folder: Path, terms: Sequence[Fact] = _TERMS) -> str:
    """GitHub-flavoured Markdown; images are linked relative to ``folder``."""
    parts = [f"# {title}", text, "## What the numbers mean"]
    parts.append("\n".join(f"- **{fact.term}**: {' '.join(fact.values)}" for fact in terms))
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


def study_html(title: str, text: str, blocks: Sequence[Block], terms: Sequence[Fact] = _TERMS) -> str:
    """One self-contained page."""
    named = [(type(block).__name__, block) for block in blocks]
    return render("study_page.html", {"title": title, "text": text, "terms": terms, "blocks": named})
