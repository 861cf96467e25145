"""Records that are made when they are asked for: parts of others, and several behind one another."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import overload

from hpa_lightning.data.record import Record


class RecordSequence(Sequence[Record]):
    """A sequence that holds no records; a slice is such a sequence, too."""

    @abstractmethod
    def record(self, index: int) -> Record:
        """Return the record at an index from 0 on."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return ChosenRecords(self, range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} of {len(self)} records")
        return self.record(place)


class ChosenRecords(RecordSequence):
    """The records of another sequence at some indices, in their order and perhaps several times.

    >>> from hpa_lightning.data.record import Record
    >>> [record.id for record in ChosenRecords([Record("a", ()), Record("b", ())], [1, 0, 1])]
    ['b', 'a', 'b']
    """

    def __init__(self, records: Sequence[Record], indices: Sequence[int]) -> None:
        self._records = records
        # A list of integers would be copied in every worker, as soon as the worker counts references to them.
        self._indices = indices if isinstance(indices, range) else array("Q", indices)

    def __len__(self) -> int:
        return len(self._indices)

    def record(self, index: int) -> Record:
        """Return the record at an index from 0 on."""
        return self._records[self._indices[index]]


class JoinedRecords(RecordSequence):
    """The records of several sequences, one sequence after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def record(self, index: int) -> Record:
        """Return the record at an index from 0 on."""
        part = bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]
