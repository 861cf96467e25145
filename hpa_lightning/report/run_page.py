"""The page of one run, or of several compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpa_lightning.redaction import masked_command
from hpa_lightning.report.category_tables import category_tables, figures_table
from hpa_lightning.report.drift_prediction import drift_table, has_drift
from hpa_lightning.report.judges import judges_of
from hpa_lightning.report.meanings import MEANINGS
from hpa_lightning.report.protection_table import protection_table
from hpa_lightning.report.run_tables import (
    answers_table,
    broken_runs,
    gate_table,
    helpfulness_table,
    matrix_table,
    method_table,
    run_labels,
    run_table,
    safety_table,
    seed_label,
)
from hpa_lightning.report.templating import Fact, Image, render
from hpa_lightning.results.events import GateEvent, SafetyCalibrationEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Table


@dataclass(frozen=True)
class Section:
    """What the page says of one run.

    Args:
        label: the run's name.
        origin: how it was made.
        tables: heading, table and caption.
        images: its plots.
    """

    label: str
    origin: tuple[Fact, ...]
    tables: tuple[tuple[str, Table, str], ...]
    images: tuple[Image, ...]


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
    tables = [(method_table(runs), "After the last task; mean ± 95 % confidence interval over the runs of a method")]
    if len(runs) > len({run.method for run in runs}):
        tables.append((run_table(runs), "Every run after its last task"))
    if (drifted := [run for run in runs if has_drift(run)]) and len(drifted) > 2:
        caption = f"Rank correlation of drift with the rise of attack success, over all steps of {len(drifted)} runs"
        tables.append((drift_table(drifted), f"{caption}; interval: bootstrap over runs"))
    return render(
        "run_page.html",
        {
            "title": title,
            "tasks": list(dict.fromkeys(task for run in runs for task in run.tasks)),
            "meanings": MEANINGS,
            "tables": tables,
            "warnings": broken_runs(runs),
            "overview": overview,
            "sections": [_section(run, label, images.get(label, ())) for run, label in zip(runs, labels, strict=True)],
        },
    )


def _section(run: RunResults, label: str, images: Sequence[Image]) -> Section:
    tables = [
        ("Scores on every task", matrix_table(run), "Score in percent on every task (columns) after every step (rows)"),
        ("Safety at every step", safety_table(run), "Attack success and over-refusal in percent after every step"),
    ]
    if (helpful := helpfulness_table(run)).rows:
        caption = "Score in percent on every set of helpfulness after every step"
        tables.append(("Helpfulness at every step", helpful, caption))
    if (further := figures_table(run)).rows:
        caption = "What the sets' metrics report beside the score after every step, in percent, points as they are"
        tables.append(("Further figures", further, caption))
    tables += category_tables(run)
    answers = answers_table(run)
    if answers.rows:
        caption = "Percent of the answers to every set that were empty, that the limit cut off, and that named no "
        tables.append(("Empty and cut answers", answers, f"{caption}option"))
    if run.events(GateEvent):
        tables.append(("Safety gate", gate_table(run), "Tasks that broke the budget of attack success, in percent"))
    if (protected := protection_table(run)).rows:
        caption = (
            "Percent of each layer's input directions that the task's update has left (a damped one counts in part)"
        )
        tables.append(("Directions left", protected, caption))
    return Section(label, tuple(_origin(run)), tuple(tables), tuple(images))


def _origin(run: RunResults) -> list[Fact]:
    """How the run can be repeated: command, seed, commit, versions, data, judges, decoding."""
    versions = run.about.versions or {}
    calibration = run.events(SafetyCalibrationEvent)
    facts = [
        Fact("Command", (masked_command(run.about.command or "not recorded"),), code=True),
        Fact("Seed", (seed_label(run.seed),)),
        Fact("Commit", tuple(run.commits), code=True),
        Fact("Versions", (", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",)),
    ]
    data = run.about.data or {}
    if calibration:
        last = calibration[-1]
        text = f"{last.asked} harmful inputs asked, {last.refused} refused, {last.used} used"
        source = data.get("harmful_calibration", {}).get("source")
        facts.append(Fact("Safety calibration", (f"{text}; from {source}" if source else text,)))
    if injection := data.get("harmful_injection"):
        text = ", ".join(f"{task} {len(indices)}" for task, indices in injection["indices"].items())
        facts.append(Fact("Harmful injection", (f"{100 * injection['ratio']:g} % from {injection['source']}: {text}",)))
    judges = {name: ", then ".join(found) for name, found in judges_of(run).items()}
    decodings = {
        name: ", ".join(f"{key} {json.dumps(value)}" for key, value in decoding.items())
        for name, decoding in run.decodings().items()
    }
    for term, by_set in (("Judge", judges), ("Decoding", decodings)):
        if by_set:
            facts.append(Fact(term, _alike(by_set)))
    return facts


def _alike(by_set: Mapping[str, str]) -> tuple[str, ...]:
    """One line for the sets that share a text.

    >>> _alike({"figstep": "rules-v2", "xstest": "rules-v1", "vlguard": "rules-v2"})
    ('figstep, vlguard: rules-v2', 'xstest: rules-v1')
    """
    alike: dict[str, list[str]] = {}
    for name, text in by_set.items():
        alike.setdefault(text, []).append(name)
    return tuple(f"{', '.join(names)}: {text}" for text, names in alike.items())
