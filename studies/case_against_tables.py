"""The tables of `case_against.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

KINDS = ("text", "image", "typeset")
TASKS = ("driving", "captions", "reading")
REPORT_SEEDS = 101
"""Seeds from here on are report seeds."""

Cell = Mapping[str, Any]
Figure = Callable[[Cell], float]


def attack_success(groups: Mapping[str, Sequence[int]], *names: str) -> float:
    """Percent of inputs that were not refused, in the groups that have all of the names.

    Args:
        groups: "kind, wording, harm" -> inputs, and inputs that were not refused.
        names: of kinds, wordings, harms.
    """
    counts = np.array([count for group, count in groups.items() if set(names) <= set(group.split(", "))])
    return float(100 * counts[:, 1].sum() / counts[:, 0].sum())


def mean_attack_success(groups: Mapping[str, Sequence[int]], *names: str) -> float:
    """The mean over the kinds."""
    return float(np.mean([attack_success(groups, kind, *names) for kind in KINDS]))


def shown(values: Iterable[float]) -> str:
    """Mean and half width of the 95 % interval over seeds (Student's t), none for a single seed."""
    found = list(values)
    if len(found) == 1:
        return f"{found[0]:.1f}"
    width = stats.t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / np.sqrt(len(found))
    return f"{np.mean(found):.1f} ± {width:.1f}"


def _of(cell: Cell, name: str) -> float:
    return attack_success(cell["groups"], name)


def _mean_of(cell: Cell, name: str | None = None) -> float:
    return mean_attack_success(cell["groups"], *([] if name is None else [name]))


def _at(cell: Cell, step: int) -> float:
    return mean_attack_success(cell["curve"][str(step)])


def _tasks(cell: Cell) -> float:
    return float(100 * np.mean([cell[task] for task in TASKS if task in cell]))


def _over_refusal(cell: Cell) -> float:
    return float(100 * cell["harmless"])


def stream_columns() -> dict[str, Figure]:
    """What is shown of a stream of tasks."""
    kinds: dict[str, Figure] = {f"ASR {kind}": partial(_of, name=kind) for kind in KINDS}
    return kinds | {"MASR": _mean_of, "AP": _tasks, "over-refusal": _over_refusal}


def part_columns() -> dict[str, Figure]:
    """MASR by wording and by harm."""
    parts = {"questions": "question", "instructions": "instruction", "known harm": "known", "other harm": "held out"}
    return {f"MASR, {label}": partial(_mean_of, name=name) for label, name in parts.items()}


def attack_columns(cells: Sequence[Cell]) -> dict[str, Figure]:
    """MASR after so many steps."""
    steps = sorted({int(step) for cell in cells for step in cell["curve"]})
    return {f"{step} steps": partial(_at, step=step) for step in steps}


def _table(cells: Sequence[Cell], first: str, columns: Mapping[str, Figure]) -> str:
    lines = [f"| {first} | seeds | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for condition in dict.fromkeys(cell["condition"] for cell in cells):
        rows = [cell for cell in cells if cell["condition"] == condition]
        values = " | ".join(shown(map(figure, rows)) for figure in columns.values())
        lines.append(f"| {condition} | {len(rows)} | {values} |")
    return "\n".join(lines)


def tables(cells: Sequence[Cell]) -> str:
    """Markdown: tables for each group, for development and report seeds apart, in percent."""
    parts = []
    for report in (False, True):
        of_seeds = [cell for cell in cells if (cell["seed"] >= REPORT_SEEDS) == report]
        for group in ("kinds", "samples", "default", "injection", "attack"):
            rows = [cell for cell in of_seeds if cell["group"] == group]
            if not rows:
                continue
            seeds, commits = sorted({row["seed"] for row in rows}), sorted({str(row["commit"])[:7] for row in rows})
            parts.append(f"**{group}**: seeds {', '.join(map(str, seeds))}; commits {', '.join(commits)}")
            if group == "attack":
                parts.append(_table(rows, "MASR of an attack", attack_columns(rows)))
                continue
            if group == "samples":
                default = [cell for cell in of_seeds if (cell["group"], cell["condition"]) == ("kinds", "all")]
                rows += [{**cell, "condition": "128"} for cell in default]
                rows.sort(key=lambda row: int(row["condition"]))
            parts.append(_table(rows, "samples" if group == "samples" else "basis of", stream_columns()))
            if group == "kinds":
                parts.append(_table(rows, "basis of", part_columns()))
    return "\n\n".join(parts)
