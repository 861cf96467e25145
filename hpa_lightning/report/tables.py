"""Tables of results as text, Markdown, CSV and JSON: scores in percent, a dash where nothing was measured."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from hpa_lightning.results import RunResults

MISSING = "–"

#: Columns of the summary: key in `RunResults.summary`, heading, and the factor from the stored value.
SUMMARY_COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("AP", "AP %", 100.0),
    ("BWT", "BWT %", 100.0),
    ("MASR", "MASR %", 100.0),
    ("DASR", "DASR %", 100.0),
    ("over_refusal", "Over-refusal %", 100.0),
    ("minutes", "Minutes", 1.0),
)

#: Columns that follow where any run counted it.
ANSWER_COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("empty", "Empty %", 100.0),
    ("cut", "Cut %", 100.0),
    ("no_option", "No option %", 100.0),
)


class Estimate(NamedTuple):
    """A mean over seeds and the half width of its 95 % confidence interval (NaN for a single seed)."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return MISSING
        return f"{self.mean:.2f}" if math.isnan(self.half_width) else f"{self.mean:.2f} ± {self.half_width:.2f}"


class Difference(Estimate):
    """An estimate of a difference: its sign is always shown."""

    __slots__ = ()

    def __str__(self) -> str:
        text = super().__str__()
        return text if math.isnan(self.mean) else f"{'+' if self.mean >= 0 else ''}{text}"


class PValue(float):
    """A p-value: three decimals, a dash if there was no test."""

    def __str__(self) -> str:
        return MISSING if math.isnan(self) else "<0.001" if self < 0.001 else f"{float(self):.3f}"


Cell = str | int | float | Estimate


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and half width of its confidence interval, Student's t with n - 1 degrees of freedom.

    Example:
        >>> estimate([1.0, 2.0, 3.0])
        Estimate(mean=2.0, half_width=2.484...)
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return Estimate(math.nan, math.nan)
    if len(sample) == 1:
        return Estimate(float(sample[0]), math.nan)
    quantile = float(stdtrit(len(sample) - 1, (1 + level) / 2))
    return Estimate(float(sample.mean()), quantile * float(sample.std(ddof=1)) / math.sqrt(len(sample)))


def format_cell(cell: Cell) -> str:
    """A number with two decimals, an estimate with its interval, a dash where nothing was measured.

    Example:
        >>> format_cell(97.125), format_cell(float("nan")), format_cell(3)
        ('97.12', '–', '3')
    """
    if isinstance(cell, float) and not isinstance(cell, PValue):
        return MISSING if math.isnan(cell) else f"{cell:.2f}"
    return str(cell)


@dataclass(frozen=True)
class Table:
    """Headings and rows of cells; numbers are in the unit that the heading names.

    Example:
        >>> table = Table(("Method", "AP %"), [("HPA", Estimate(75.0, 1.5)), ("SeqFT", 50.0)])
        >>> print(table.text())
        Method          AP %
        HPA     75.00 ± 1.50
        SeqFT          50.00
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def _formatted(self) -> list[list[str]]:
        return [list(self.columns), *([format_cell(cell) for cell in row] for row in self.rows)]

    def text(self) -> str:
        """Columns aligned with spaces, the first one to the left, numbers to the right."""
        lines = self._formatted()
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        left = [i == 0 or all(isinstance(row[i], str) for row in self.rows) for i in range(len(widths))]
        return "\n".join(
            "  ".join(c.ljust(w) if lft else c.rjust(w) for c, w, lft in zip(line, widths, left, strict=True)).rstrip()
            for line in lines
        )

    def markdown(self) -> str:
        """A GitHub-flavoured Markdown table."""
        head, *body = ([cell.replace("|", "\\|") for cell in line] for line in self._formatted())
        rule = ["---" if i == 0 else "---:" for i in range(len(head))]
        return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))

    def select(self, columns: Sequence[str]) -> Table:
        """The table with these of its columns, in this order."""
        places = [list(self.columns).index(column) for column in columns]
        return Table(columns, [[row[place] for place in places] for row in self.rows])

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per row, not rounded; NaN is None, an interval is a column of its own."""
        intervals = {
            column
            for i, column in enumerate(self.columns)
            if any(
                isinstance(cell, Estimate) and not math.isnan(cell.half_width) for cell in (row[i] for row in self.rows)
            )
        }
        records = []
        for row in self.rows:
            record: dict[str, Any] = {}
            for column, cell in zip(self.columns, row, strict=True):
                value, half_width = cell if isinstance(cell, Estimate) else (cell, math.nan)
                record[column] = _none_for_nan(value)
                if column in intervals:
                    record[f"{column} ± (95 % CI)"] = _none_for_nan(half_width)
            records.append(record)
        return records

    def csv(self) -> str:
        """Comma-separated values; numbers with two decimals, empty where nothing was measured."""
        records = self.records()
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow([_csv_cell(name) for name in (records[0] if records else self.columns)])
        for record in records:
            writer.writerow([_csv_cell(value) for value in record.values()])
        return output.getvalue()

    def json(self) -> str:
        """A JSON list with one object per row, not rounded."""
        return json.dumps(self.records(), ensure_ascii=False, indent=2)


def _csv_cell(value: Any) -> Any:
    """Numbers rounded; a text that a spreadsheet would take for a formula begins with an apostrophe, which it hides."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    if isinstance(value, PValue):
        return f"{float(value):.4g}"
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else value


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def seed_label(seed: int | None) -> str:
    """The seed, or a dash if none was set (Lightning marks that with -1)."""
    return MISSING if seed is None or seed < 0 else str(seed)


def run_labels(runs: Sequence[RunResults]) -> list[str]:
    """A distinct name for every run: the method, if that is not enough the seed, then the folder."""
    labels = [run.method for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.method}, seed {seed_label(run.seed)}" for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({run.path.parent.name})" for label, run in zip(labels, runs, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label} #{number}" for number, label in enumerate(labels, start=1)]
    return labels


def by_method(runs: Sequence[RunResults]) -> dict[str, list[RunResults]]:
    """The runs of every method, methods in the order of their first run."""
    groups: dict[str, list[RunResults]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def summary_columns(runs: Sequence[RunResults]) -> tuple[tuple[str, str, float], ...]:
    """`SUMMARY_COLUMNS`, and those of `ANSWER_COLUMNS` that any of the runs counted."""
    counted = {key for run in runs for key, value in run.summary().items() if not math.isnan(value)}
    return (*SUMMARY_COLUMNS, *(column for column in ANSWER_COLUMNS if column[0] in counted))


def run_table(runs: Sequence[RunResults]) -> Table:
    """The figures after the last task, one row per run."""
    rows: list[list[Cell]] = []
    columns = summary_columns(runs)
    for label, run in zip(run_labels(runs), runs, strict=True):
        summary = run.summary()
        rows.append([label, seed_label(run.seed), *(summary[key] * factor for key, _, factor in columns)])
    return Table(["Run", "Seed", *(heading for _, heading, _ in columns)], rows)


def method_table(runs: Sequence[RunResults]) -> Table:
    """The figures after the last task, one row per method: mean ± 95 % confidence interval over its runs."""
    rows: list[list[Cell]] = []
    columns = summary_columns(runs)
    for method, group in by_method(runs).items():
        summaries = [run.summary() for run in group]
        estimates = [estimate([s[key] * factor for s in summaries]) for key, _, factor in columns]
        rows.append([method, len(group), *estimates])
    return Table(["Method", "Runs", *(heading for _, heading, _ in columns)], rows)


def step_name(run: RunResults, step: int) -> str:
    """``aligned`` for step -1 (``tested`` in results of `test`), else the name of the task that was just learnt."""
    if step < 0:
        return "tested" if "tested" in run.run else "aligned"
    return run.tasks[step]


def _counted(run: RunResults) -> list[tuple[str, str]]:
    """Key and heading of what the run counted of its answers."""
    known = {key for step in run.steps for one in run.answers(step).values() for key in one}
    return [(key, heading) for key, heading, _ in ANSWER_COLUMNS if key in known]


def _shares(run: RunResults, step: int, *kinds: str) -> list[Cell]:
    """Percent of the answers to the sets of some kinds that were empty, cut, or named no option, where counted."""
    return [100 * run.share_of_answers(key, step, kinds) for key, _ in _counted(run)]


def matrix_table(run: RunResults) -> Table:
    """Scores on every task (columns) of the aligned model and after every task (rows), percent.

    Behind them, where it was counted, the shares of empty answers and of those that the limit cut, over all tasks.
    """
    steps = range(-1, len(run.tasks))
    scores = [list(run.initial().values()), *run.matrix().tolist()]
    rows: list[list[Cell]] = [
        [_row_name(run, step), *(100 * score for score in row), *_shares(run, step, "task")]
        for step, row in zip(steps, scores, strict=True)
    ]
    return Table(["%", *run.tasks, *(heading for _, heading in _counted(run))], rows)


def safety_table(run: RunResults) -> Table:
    """Attack success per safety set, its mean and over-refusal per set after every step, percent.

    Behind them, where it was counted, the shares of empty answers and of those that the limit cut, over these sets.
    """
    safety, harmless = run.names("safety"), run.names("over_refusal")
    rows: list[list[Cell]] = []
    for step in run.steps:
        summary = run.summary(step)
        rates = [
            *run.safety(step).values(),
            summary["MASR"],
            summary["DASR"],
            *run.over_refusal(step).values(),
        ]
        shares = _shares(run, step, "safety", "over_refusal")
        rows.append([_row_name(run, step), *(100 * r for r in rates), *shares])
    headings = [f"ASR {name}" for name in safety] + ["MASR", "DASR"] + [f"over-refusal {name}" for name in harmless]
    return Table(["%", *headings, *(heading for _, heading in _counted(run))], rows)


def answers_table(run: RunResults) -> Table:
    """For every set and step, the percent of answers that were empty, that were cut, and that named no option."""
    rows: list[list[Cell]] = []
    for item in run.sets:
        for key, heading in _counted(run):
            found = [run.answers(step).get(item["name"], {}) for step in run.steps]
            if any(key in one for one in found):
                rows.append([item["name"], heading, *(_share(one, key) for one in found)])
    return Table(["Set", "Answers", *(_row_name(run, step) for step in run.steps)], rows)


def _row_name(run: RunResults, step: int) -> str:
    return step_name(run, step) if step < 0 else f"after {step_name(run, step)}"


def gate_table(run: RunResults) -> Table:
    """What the safety gate did: the tasks that broke the budget, mean attack success before and after, percent."""
    rows: list[list[Cell]] = []
    for event in run.events("gate"):
        raised = event.get("raised_by")
        action = event["action"].replace("_", " ")
        rows.append(
            [
                event["task"],
                100 * event["budget"],
                100 * event["attack_success_rate"],
                action if raised is None else f"{action}, {100 * raised:.1f} % of the way to all columns",
                100 * event["kept_attack_success_rate"],
            ]
        )
    return Table(["Task", "Budget", "MASR", "Action", "MASR kept"], rows)


def score_table(runs: Sequence[RunResults]) -> Table:
    """Every score of every run in long form, one row per run, step and set; -1 is the aligned model."""
    rows: list[list[Cell]] = []
    counted = [column for column in ANSWER_COLUMNS if any(column[:2] in _counted(run) for run in runs)]
    for label, run in zip(run_labels(runs), runs, strict=True):
        for step in run.steps:
            counts = run.answers(step)
            for kind in ("task", "safety", "over_refusal"):
                rows += [
                    [
                        label,
                        run.method,
                        seed_label(run.seed),
                        step,
                        step_name(run, step),
                        kind,
                        name,
                        100 * score,
                        *(_share(counts.get(name, {}), key) for key, _, _ in counted),
                    ]
                    for name, score in run.scores(step, kind).items()
                ]
    headings = ["run", "method", "seed", "step", "after", "kind", "set", "score_percent"]
    return Table([*headings, *(f"{key}_percent" for key, _, _ in counted)], rows)


def _share(counts: Mapping[str, int], key: str) -> float:
    """Percent of a set's answers; NaN where it was not counted."""
    return 100 * counts[key] / counts["n"] if key in counts and counts["n"] else math.nan
