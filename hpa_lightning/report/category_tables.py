"""Tables of what metrics report beside the scores: further figures, and the categories of published sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hpa_lightning.report.run_tables import row_name, run_labels, seed_label, step_name
from hpa_lightning.results.run_results import COUNTS, RunResults
from hpa_lightning.table import Cell, Table


def category_tables(run: RunResults) -> list[tuple[str, Table, str]]:
    """Heading, table and caption of every set and scheme of categories: one row a category, one column a step."""
    found = []
    for item in run.sets:
        for scheme in _schemes(run, item["name"]):
            measures = "points" if _has_points(run, item["name"], scheme) else "percent"
            table = _table(run, item["name"], scheme, "points" if measures == "points" else "score")
            caption = f"Score of every {scheme} of {item['name']} after every step, in {measures}"
            found.append((f"{item['name']} by {scheme}", table, caption))
    return found


def figures_table(run: RunResults) -> Table:
    """What the sets' metrics report beside the score at every step, percent, but for points; no rows without such."""
    rows: list[list[Cell]] = []
    for measure in run.further_measures:
        name, _, figure = measure.partition("/")  # no set has a slash in its name
        values = [_value(figure, run.mean_score([measure], step)) for step in run.steps]
        rows.append([name, figure.replace("_", " "), *values])
    return Table(["Set", "Figure", *(row_name(run, step) for step in run.steps)], rows)


def category_csv_table(runs: Sequence[RunResults]) -> Table:
    """Every figure of every category in long form: one row per run, step, set, scheme, category and figure.

    Figures are in percent, but for points.
    """
    rows: list[list[Cell]] = []
    for label, run in zip(run_labels(runs), runs, strict=True):
        for step in run.steps:
            for name, event in run.scored(step).items():
                start: list[Cell] = [label, seed_label(run.seed), step, step_name(run, step), name]
                for scheme, by_name in (event.categories or {}).items():
                    for category, entry in by_name.items():
                        for figure, value in entry.items():
                            if figure != "n":
                                rows.append([*start, scheme, category, entry["n"], figure, _value(figure, value)])
    headings = ["run", "seed", "step", "after", "set", "scheme", "category", "n", "figure", "value"]
    return Table(headings, rows)


def further_text(fields: Mapping[str, Any]) -> str:
    """What a set's metric reports in addition to its score, in words; ``""`` where that is nothing.

    >>> further_text({"set": "mme", "figures": {"accuracy_plus": 0.5, "points": 1250.0}})
    'mme: accuracy plus 50.00 %, points 1250.00'
    """
    figures = fields.get("figures") or {}
    reported = [
        f"{name.replace('_', ' ')} {_value(name, value):.2f}{'' if name in COUNTS else ' %'}"
        for name, value in figures.items()
    ]
    return f"{fields['set']}: {', '.join(reported)}" if reported else ""


def _value(figure: str, value: float | None) -> float:
    if value is None:
        return math.nan
    return value if figure in COUNTS else 100 * value


def _entries(run: RunResults, step: int, name: str, scheme: str) -> Mapping[str, Mapping[str, Any]]:
    event = run.scored(step).get(name)
    return {} if event is None else (event.categories or {}).get(scheme, {})


def _schemes(run: RunResults, name: str) -> list[str]:
    events = [run.scored(step).get(name) for step in run.steps]
    return list(dict.fromkeys(scheme for event in events if event for scheme in event.categories or {}))


def _has_points(run: RunResults, name: str, scheme: str) -> bool:
    return any("points" in entry for step in run.steps for entry in _entries(run, step, name, scheme).values())


def _table(run: RunResults, name: str, scheme: str, figure: str) -> Table:
    by_step = [_entries(run, step, name, scheme) for step in run.steps]
    rows: list[list[Cell]] = []
    for category in dict.fromkeys(category for entries in by_step for category in entries):
        entries = [one.get(category, {}) for one in by_step]
        counts = [entry["n"] for entry in entries if "n" in entry]
        rows.append([category, max(counts), *(_value(figure, entry.get(figure)) for entry in entries)])
    return Table([scheme, "n", *(row_name(run, step) for step in run.steps)], rows)
