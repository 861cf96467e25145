"""The grid: methods, conditions, settings and seeds in YAML, each cell one configuration of `hpa-lightning fit`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import fill


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        method: name in the study file; with a grid the values stand behind it (``retention[p=5]``).
        title: the method's name in tables.
        condition: name of the data condition.
        seed: of the run.
        config: what ``hpa-lightning fit --config`` gets; ``${folder}`` stands for the cell's folder.
        values: the grid's values of this point.
        after: the run that must be finished before; ``${start}`` in ``config`` stands for its folder.
    """

    method: str
    title: str
    condition: str
    seed: int
    config: Mapping[str, Any] = field(compare=False)
    values: Mapping[str, Any] = field(compare=False, default_factory=dict)
    after: Cell | None = field(compare=False, default=None)

    @property
    def family(self) -> str:
        """The method's name without the grid's values."""
        return self.method.partition("[")[0]

    @property
    def key(self) -> str:
        """Distinct in the study, and usable as the path of a folder."""
        method = re.sub(r"[^\w.-]+", "-", self.method).strip("-")
        return f"{self.condition}/{method}/seed_{self.seed}"

    @property
    def digest(self) -> str:
        """Of everything that decides the run's outcome; the title and the folder do not."""
        # What it starts with is a part of it, and the place of the store is not.
        start = {} if self.after is None else {"start": self.after.digest}
        config = fill(self.config, {"title": "", "folder": "", **start})
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]

    def config_for(self, folder: Path, start: Path | None = None) -> dict[str, Any]:
        """The configuration with the cell's folder filled in, and that of the run it starts with.

        Args:
            folder: of the cell.
            start: of the run it starts with; in the same store under that cell's own name when ``None``.
        """
        values = {"title": self.title, "folder": str(folder)}
        if self.after is not None:
            values["start"] = str(folder.parents[2] / self.after.key if start is None else start)
        found: dict[str, Any] = fill(self.config, values)
        return found


@dataclass(frozen=True)
class Group:
    """Cells that are shown together.

    Args:
        name: on the command line.
        title, text: in the report.
        cells: method by method, in the order of the study file.
        references: methods that the others are compared with, each in a table of its own.
        x: the axis of a sweep: ``setting`` (a name of the methods' grids), ``label``, ``logarithmic``.
        curves: methods in the figure of every step; chosen by the report when ``None``.
        matrices: methods whose mean score matrix is shown.
        columns: further columns of the tables: heading -> evaluation sets whose mean score it shows.
        optional_columns: headings of those that are left out where no run has their sets.
        costs: whether a table of time and memory is shown.
    """

    name: str
    title: str
    text: str
    cells: tuple[Cell, ...]
    references: tuple[str, ...] = ()
    x: Mapping[str, Any] | None = None
    curves: tuple[str, ...] | None = None
    matrices: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optional_columns: frozenset[str] = frozenset()
    costs: bool = False


@dataclass(frozen=True)
class Study:
    """A study file, expanded."""

    title: str
    text: str
    groups: tuple[Group, ...]

    def cells(self, groups: list[str] | None = None) -> list[Cell]:
        """Every run once, seed by seed within each group, so that an interrupted study has whole seeds.

        Of cells that are the same run under several names, the first one stands for all, and what starts with any of
        them starts with that one.

        Raises:
            ValueError: a group that the study does not have.
        """
        known = {group.name: group for group in self.groups}
        unknown = [name for name in groups or () if name not in known]
        if unknown:
            raise ValueError(f"the study has no group {unknown[0]!r}; its groups are {list(known)}.")
        chosen = [known[name] for name in groups] if groups else list(self.groups)
        found: dict[str, Cell] = {}
        for group in chosen:
            for cell in sorted(group.cells, key=lambda cell: [c.seed for c in group.cells].index(cell.seed)):
                chain = [cell]
                while (before := chain[-1].after) is not None:
                    chain.append(before)
                for item in reversed(chain):
                    start = None if item.after is None else found[item.after.digest]
                    found.setdefault(item.digest, replace(item, after=start))
        return list(found.values())
