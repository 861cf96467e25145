"""Tables as text, Markdown, CSV and JSON: two decimals, a dash where nothing was measured."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MISSING = "–"


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
        writer.writerow([csv_cell(name) for name in (records[0] if records else self.columns)])
        for record in records:
            writer.writerow([csv_cell(value) for value in record.values()])
        return output.getvalue()

    def json(self) -> str:
        """A JSON list with one object per row, not rounded."""
        return json.dumps(self.records(), ensure_ascii=False, indent=2)


def csv_cell(value: Any) -> Any:
    """Numbers rounded; a text that a spreadsheet would take for a formula begins with an apostrophe, which it hides."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    if isinstance(value, PValue):
        return f"{float(value):.4g}"
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else value


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
