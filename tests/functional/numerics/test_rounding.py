"""Rounding of half-precision weights: slots."""

from __future__ import annotations

import torch
from support.projected_updates import make

from hpa_lightning.functional.numerics.rounding import rounding_slots


def test_slots_are_distinct_free_and_reusable() -> None:
    _, old, mask = make(5, 40, 30, 0.0, torch.float32, 0.5)
    slots = rounding_slots(old, mask)
    rows, columns, direction = slots.rows[0], slots.columns[0], slots.direction[0]
    places = list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(set(places)) == len(places)
    usable = direction != 0
    assert usable.any()
    assert not mask[columns[usable]].any()
    assert torch.equal(direction[usable], old[rows, columns].double()[usable])
