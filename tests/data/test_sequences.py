"""Parts of records and records behind one another do what lists do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpa_lightning.data.record import Record
from hpa_lightning.data.sequences import ChosenRecords, JoinedRecords

cases = settings(max_examples=100, deadline=None, derandomize=True)
parts = st.lists(st.integers(0, 4), max_size=5)
places = st.one_of(st.none(), st.integers(-20, 20))


def records(count: int, name: str = "r") -> list[Record]:
    return [Record(f"{name}{index}", ()) for index in range(count)]


def same(found: Sequence[Record], expected: list[Record]) -> None:
    assert len(found) == len(expected) and list(found) == expected
    for index in range(-len(expected), len(expected)):
        assert found[index] == expected[index]
    for index in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError, match=f"index {index} of {len(expected)} records"):
            found[index]


@cases
@given(parts)
def test_joined_sequences_are_a_joined_list(sizes: list[int]) -> None:
    lists = [records(size, f"{number}-") for number, size in enumerate(sizes)]
    same(JoinedRecords(lists), list(chain.from_iterable(lists)))


@cases
@given(parts, places, places, st.integers(-3, 3).filter(bool))
def test_slices_are_those_of_a_list(sizes: list[int], start: int | None, stop: int | None, step: int) -> None:
    lists = [records(size, f"{number}-") for number, size in enumerate(sizes)]
    expected = list(chain.from_iterable(lists))[start:stop:step]
    part = JoinedRecords(lists)[start:stop:step]
    same(part, expected)
    same(part[::-1], expected[::-1])


def test_chosen_records_come_in_the_order_of_their_indices_and_follow_the_sequence() -> None:
    own = records(3)
    chosen = ChosenRecords(own, [2, 0, 2])
    same(chosen, [own[2], own[0], own[2]])
    own[2] = Record("new", ())
    assert chosen[0].id == "new"
