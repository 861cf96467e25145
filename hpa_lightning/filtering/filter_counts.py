"""How many records each part of a filter found harmful, and which parts agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from hpa_lightning.filtering.assessment import Assessment
from hpa_lightning.filtering.findings_log import RowFindings
from hpa_lightning.table import Cell, Table

_KINDS = [kind.value for kind in Assessment]


class FilterCounts:
    """Counts over findings, which are added row by row.

    Args:
        parts: names of the parts, in their order.

    Attributes:
        kept: records.
        dropped: records.
        bad: of the dropped ones, those that could not be read.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        self.kept = self.dropped = self.bad = 0
        self._kinds: dict[str, Counter[str]] = {part: Counter() for part in parts}
        self._alone: Counter[str] = Counter()
        self._categories: dict[str, Counter[str]] = {part: Counter() for part in parts}
        self._together: Counter[tuple[str, ...]] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, row: RowFindings, reasons: Sequence[str]) -> None:
        """Tell what was found in the next row, and the parts for which it is dropped."""
        is_dropped = bool(reasons or row.problem)
        self.dropped += is_dropped
        self.kept += not is_dropped
        self.bad += bool(row.problem)
        self._reasons.update(reasons)
        for part, found in row.findings.items():
            self._kinds[part][found.assessment.value] += 1
            if found.assessment is Assessment.HARMFUL:
                self._categories[part].update(found.categories or [found.label or "(no category)"])
        harmful = tuple(part for part, found in row.findings.items() if found.assessment is Assessment.HARMFUL)
        if harmful:
            self._together[harmful] += 1
        if len(harmful) == 1:
            self._alone[harmful[0]] += 1

    def part_table(self) -> Table:
        """Records by part and assessment; those that no other part finds harmful; those dropped for it."""
        columns = ("Part", "Harmful", "by it alone", *(kind.capitalize() for kind in _KINDS[1:]), "Dropped for it")
        rows: list[list[Cell]] = []
        for part in self.parts:
            kinds = self._kinds[part]
            others = [kinds[kind] for kind in _KINDS[1:]]
            rows.append([part, kinds["harmful"], self._alone[part], *others, self._reasons[part]])
        return Table(columns, rows)

    def category_table(self) -> Table:
        """Harmful records by part and category (by label, where a part knows no categories)."""
        counted = ((part, name, n) for part in self.parts for name, n in self._categories[part].most_common())
        return Table(("Part", "Category", "Records"), [list(row) for row in counted])

    def overlap_table(self) -> Table:
        """Records by the parts that find them harmful, all of them."""
        return Table(("Harmful by", "Records"), [[" + ".join(key), n] for key, n in self._together.most_common()])

    def text(self) -> str:
        """All tables."""
        total = self.kept + self.dropped
        unread = f" ({self.bad} of them could not be read)" if self.bad else ""
        parts = [f"{total} records: {self.kept} kept, {self.dropped} dropped{unread}", self.part_table().text()]
        parts += [table.text() for table in (self.category_table(), self.overlap_table()) if table.rows]
        return "\n\n".join(parts)

    def json(self) -> str:
        """All tables, as an object."""
        tables = {"parts": self.part_table(), "categories": self.category_table(), "overlaps": self.overlap_table()}
        counts = {"records": self.kept + self.dropped, "kept": self.kept, "dropped": self.dropped, "bad": self.bad}
        filled = {name: table.records() for name, table in tables.items()}
        return json.dumps({**counts, **filled}, ensure_ascii=False, indent=2) + "\n"
