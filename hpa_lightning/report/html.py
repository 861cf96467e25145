"""One self-contained HTML page: images are embedded, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hpa_lightning.masking import masked_command
from hpa_lightning.report.judges import judges_of
from hpa_lightning.report.page import CSS, MEANINGS
from hpa_lightning.report.tables import (
    Table,
    answers_table,
    format_cell,
    gate_table,
    matrix_table,
    method_table,
    run_labels,
    run_table,
    safety_table,
    seed_label,
)
from hpa_lightning.results import RunResults


@dataclass(frozen=True)
class Image:
    """A PNG file with its caption and the text that stands for it (screen readers)."""

    path: Path
    caption: str
    alt: str


def table_html(table: Table, caption: str) -> str:
    """A table with its caption, in a region that scrolls sideways."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(format_cell(cell))}</th>' if i == 0 else f"<td>{escape(format_cell(cell))}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<p class="caption">{escape(caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure_html(image: Image) -> str:
    """A figure with its caption, the picture embedded."""
    data = base64.b64encode(image.path.read_bytes()).decode()
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{escape(image.caption)}">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(image.alt)}"></div>'
        f"<figcaption>{escape(image.caption)}</figcaption></figure>"
    )


def definitions_html(pairs: Sequence[tuple[str, str]]) -> str:
    """Terms and meanings; both are HTML."""
    return "<dl>" + "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in pairs) + "</dl>"


def _origin(run: RunResults) -> str:
    """How the run can be repeated: command, seed, commit, versions."""
    versions = run.run.get("versions") or {}
    calibration = run.events("safety_calibration")
    pairs = [
        ("Command", f"<code>{escape(masked_command(str(run.run.get('command') or 'not recorded')))}</code>"),
        ("Seed", escape(seed_label(run.seed))),
        ("Commit", ", then ".join(f"<code>{escape(commit)}</code>" for commit in run.commits)),
        (
            "Versions",
            escape(", ".join(f"{name} {version}" for name, version in versions.items())) or "not recorded",
        ),
    ]
    data = run.run.get("data") or {}
    if calibration:
        last = calibration[-1]
        text = f"{last['asked']} harmful inputs asked, {last['refused']} refused, {last['used']} used"
        source = data.get("harmful_calibration", {}).get("source")
        pairs.append(("Safety calibration", escape(f"{text}; from {source}" if source else text)))
    if injection := data.get("harmful_injection"):
        text = ", ".join(f"{task} {len(indices)}" for task, indices in injection["indices"].items())
        pairs.append(
            ("Harmful injection", escape(f"{100 * injection['ratio']:g} % from {injection['source']}: {text}"))
        )
    return definitions_html(pairs + _judges(run) + (_decoding(run) if run.decodings() else []))


def _judges(run: RunResults) -> list[tuple[str, str]]:
    """Who told refusals from answers: the sets that share a judge together."""
    alike: dict[str, list[str]] = {}
    for name, judges in judges_of(run).items():
        alike.setdefault(", then ".join(judges), []).append(name)
    if not alike:
        return []
    return [("Judge", "<br>".join(f"{escape(', '.join(of))}: {escape(judge)}" for judge, of in alike.items()))]


def _decoding(run: RunResults) -> list[tuple[str, str]]:
    """How the answers were decoded: the sets that share a setting together."""
    alike: dict[str, list[str]] = {}
    for name, decoding in run.decodings().items():
        words = ", ".join(f"{key} {json.dumps(value)}" for key, value in decoding.items())
        alike.setdefault(words, []).append(name)
    return [("Decoding", "<br>".join(f"{escape(', '.join(of))}: {escape(how)}" for how, of in alike.items()))]


def _answers(run: RunResults) -> list[str]:
    table = answers_table(run)
    if not table.rows:
        return []
    caption = "Percent of the answers to every set that were empty, that the limit cut off, and that named no option"
    return ["<h3>Empty and cut answers</h3>", table_html(table, caption)]


def _gate(run: RunResults) -> str:
    return "<h3>Safety gate</h3>" + table_html(
        gate_table(run), "Tasks that broke the budget of attack success, in percent"
    )


def _run_section(run: RunResults, label: str, images: Sequence[Image], alone: bool) -> str:
    parts = [
        _origin(run),
        "<h3>Scores on every task</h3>",
        table_html(matrix_table(run), "Score in percent on every task (columns) after every step (rows)"),
        "<h3>Safety at every step</h3>",
        table_html(safety_table(run), "Attack success and over-refusal in percent after every step"),
        *_answers(run),
        *([_gate(run)] if run.events("gate") else []),
        *(figure_html(image) for image in images),
    ]
    body = "\n".join(parts)
    if alone:
        return f"<section><h2>The run</h2>\n{body}</section>"
    return f"<details><summary>{escape(label)}</summary>\n{body}</details>"


def render_page(
    runs: Sequence[RunResults],
    images: Mapping[str, Sequence[Image]],
    overview: Sequence[Image] = (),
    title: str | None = None,
) -> str:
    """The page of one run, or of several compared.

    Args:
        runs: the runs, at least one.
        images: per run label (`run_labels`) the run's images.
        overview: images about all runs together.
        title: the page's title; default the run's label or a comparison of the methods.

    Returns:
        The HTML text.
    """
    labels = run_labels(runs)
    if title is None:
        title = labels[0] if len(runs) == 1 else f"{len(runs)} runs compared"
    tasks = " → ".join(dict.fromkeys(task for run in runs for task in run.tasks))
    tables = table_html(
        method_table(runs), "After the last task; mean ± 95 % confidence interval over the runs of a method"
    )
    if len(runs) > len({run.method for run in runs}):
        tables += table_html(run_table(runs), "Every run after its last task")
    sections = "\n".join(
        _run_section(run, label, images.get(label, ()), alone=len(runs) == 1)
        for run, label in zip(runs, labels, strict=True)
    )
    heading = "" if len(runs) == 1 else "<h2>Run by run</h2>"
    meanings = definitions_html([(escape(term), escape(meaning)) for term, meaning in MEANINGS])
    body = f"""<section><h2>What the numbers mean</h2>
{meanings}</section>
<section><h2>Summary</h2>
{tables}
{"".join(figure_html(image) for image in overview)}</section>
{heading}
{sections}"""
    return page_html(title, f'<p class="soft">Tasks: {escape(tasks)}</p>', body)


def page_html(title: str, introduction: str, body: str, more_css: str = "") -> str:
    """A whole page; ``introduction`` and ``body`` are HTML, ``more_css`` comes after the usual style sheet."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}{more_css}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
{introduction}</header>
<main>
{body}
</main>
</body>
</html>
"""
