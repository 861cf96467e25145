"""The share of input directions that each layer's update has left, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from hpa_lightning.results.events import ProtectionEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import MISSING, Cell, Table


def protection_table(run: RunResults) -> Table:
    """Percent of each layer's input directions that a task's update has left; no rows where nothing was recorded.

    One row for each task and decoder block: a column for each kind of layer, then the share of the protected inputs'
    energy that these directions hold, over the block, and the largest change of a layer's output on protected inputs:
    in the task, and of the tasks so far, the root of the sum of squares of their changes. Where they were
    measured.
    """
    events = run.events(ProtectionEvent)
    kinds = list(dict.fromkeys(_kind(event) for event in events))
    blocks: dict[tuple[int | None, int | None], list[ProtectionEvent]] = {}
    for event in events:
        blocks.setdefault((event.step, event.layer), []).append(event)
    squares: dict[str | None, float] = {}  # of a layer's changes in the tasks so far
    so_far: dict[tuple[int | None, str | None], float] = {}
    for event in sorted(events, key=lambda event: event.step or 0):
        squares[event.module] = squares.get(event.module, 0.0) + (event.change or 0.0) ** 2
        so_far[event.step, event.module] = squares[event.module] ** 0.5
    rows: list[list[Cell]] = []
    for (_, layer), block in blocks.items():
        shares: list[Cell] = [_percent_left([event for event in block if _kind(event) == kind]) for kind in kinds]
        energies = [event.energy for event in block if event.energy is not None]
        changes = [event.change for event in block if event.change is not None]
        roots = [so_far[event.step, event.module] for event in block if event.change is not None]
        rows.append(
            [
                block[0].task or MISSING,
                MISSING if layer is None else layer,
                *shares,
                100 * sum(energies) / len(energies) if energies else MISSING,
                100 * max(changes) if changes else MISSING,
                100 * max(roots) if roots else MISSING,
            ]
        )
    return Table(["Task", "Block", *kinds, "Energy held", "Largest change", "Root of squares so far"], rows)


def _kind(event: ProtectionEvent) -> str:
    return (event.module or MISSING).rsplit(".", 1)[-1]


def _percent_left(events: Sequence[ProtectionEvent]) -> Cell:
    columns = sum(event.columns for event in events)
    return 100 * sum(event.directions for event in events) / columns if columns else MISSING
