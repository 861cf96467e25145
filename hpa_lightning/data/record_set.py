"""Data of a known layout on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from hpa_lightning.data.record import Record


class RecordSet(ABC):
    """Reads records of a published layout when a stream needs them.

    It stands wherever a path or a sequence of records does, in YAML too (``class_path`` and ``init_args``). Making one
    reads nothing. Subclasses are dataclasses whose fields are strings, numbers, booleans, and lists and
    dictionaries of these.
    """

    @abstractmethod
    def read(self) -> Sequence[Record]:
        """Read the records; image paths are whole.

        Raises:
            ValueError: files that are missing or broken, named by file and record, with what was expected.
        """
