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
    in the task, and since the stream's start, the root of the sum of squares of the tasks' changes. Where they were
    measured.
    """
    events = run.events(ProtectionEvent)
    kinds = list(dict.fromkeys(_kind(event) for event in events))
    rows: list[list[Cell]] = []
    for step, layer in dict.fromkeys((event.step, event.layer) for event in events):
        block = [event for event in events if (event.step, event.layer) == (step, layer)]
        shares: list[Cell] = [_percent_left([event for event in block if _kind(event) == kind]) for kind in kinds]
        energies = [event.energy for event in block if event.energy is not None]
        changes = [event.change for event in block if event.change is not None]
        since = [_since_the_start(event, events) for event in block if event.change is not None]
        rows.append(
            [
                block[0].task or MISSING,
                MISSING if layer is None else layer,
                *shares,
                100 * sum(energies) / len(energies) if energies else MISSING,
                100 * max(changes) if changes else MISSING,
                100 * max(since) if since else MISSING,
            ]
        )
    return Table(["Task", "Block", *kinds, "Energy held", "Largest change", "Since the start"], rows)


def _since_the_start(last: ProtectionEvent, events: Sequence[ProtectionEvent]) -> float:
    same = [event for event in events if event.module == last.module and (event.step or 0) <= (last.step or 0)]
    return float(sum((event.change or 0.0) ** 2 for event in same) ** 0.5)


def _kind(event: ProtectionEvent) -> str:
    return (event.module or MISSING).rsplit(".", 1)[-1]


def _percent_left(events: Sequence[ProtectionEvent]) -> Cell:
    columns = sum(event.columns for event in events)
    return 100 * sum(event.directions for event in events) / columns if columns else MISSING
