"""PKU-SafeRLHF: a prompt with two responses, labelled for which is better and which is safer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hpa_lightning.data.published_files import check_option, conversation, text_of
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.safety_sets.pair_rows import (
    CONTRADICTION,
    TIE,
    Faulty,
    PairFault,
    answer_of,
    files_of,
    read_pairs,
)
from hpa_lightning.values import shown

_LABELS = {"safer": "safer_response_id", "better": "better_response_id"}


@dataclass(frozen=True)
class SafeRLHF(RecordSet):
    """The pairs of PKU-SafeRLHF (Ji et al., arXiv 2406.15513), texts without images.

    The chosen response is the one that ``safer_response_id`` (or ``better_response_id``) names. A label that is neither
    0 nor 1 is a tie and no pair; so is a safer response that is labelled unsafe beside a safe one.

    Args:
        files: a ``.jsonl``, ``.json`` or ``.parquet`` file, or a pattern such as ``data/*/train.jsonl``.
        prefer: ``"safer"`` or ``"better"``.
        both_unsafe: what is done where both responses are unsafe, so that an unsafe one is chosen: ``"keep"``, as the
            authors do, or ``"skip"``. Either way they are counted in a warning.
        faulty: ``"stop"``: rows that are no pairs are an error. ``"skip"``: they are left out and counted.

    Raises:
        ValueError: an unknown option; when read: no such files, rows that are no pairs, a column that is missing.
    """

    files: str
    prefer: Literal["safer", "better"] = "safer"
    both_unsafe: Literal["keep", "skip"] = "keep"
    faulty: Faulty = "stop"

    def __post_init__(self) -> None:
        check_option(self, "prefer", tuple(_LABELS))
        check_option(self, "both_unsafe", ("keep", "skip"))
        check_option(self, "faulty", ("stop", "skip"))

    def read(self) -> list[Record]:
        """Read the pairs, in the order of the files."""
        return read_pairs(files_of(self.files, "SafeRLHF file"), self._record, self.faulty)

    def _record(self, row: Row, path: Path, index: int, where: str) -> tuple[Record | None, str | None]:
        prompt = text_of(row, "prompt", where)
        label = row.get(_LABELS[self.prefer])
        if _LABELS[self.prefer] not in row:
            raise ValueError(f"{where}: {_LABELS[self.prefer]!r} is missing; expected rows of PKU-SafeRLHF.")
        if isinstance(label, bool) or label not in (0, 1):
            raise PairFault(TIE, f"{where}: {_LABELS[self.prefer]!r} is {shown(label)}; expected 0 or 1.")
        label = int(label)  # 1.0 in a parquet file in which some rows have none
        answers = [answer_of(row, f"response_{number}", where) for number in (0, 1)]
        safe = [_flag(row, f"is_response_{number}_safe", where) for number in (0, 1)]
        if self.prefer == "safer" and safe[1 - label] and safe[label] is False:
            raise PairFault(
                CONTRADICTION,
                f"{where}: response {label} is the safer one and not safe, and response {1 - label} is safe.",
            )
        doubt = None
        if safe == [False, False]:
            doubt = "have two unsafe answers; the chosen one is unsafe too"
            doubt = doubt if self.both_unsafe == "keep" else "have two unsafe answers, and are left out as asked"
        if doubt is not None and self.both_unsafe == "skip":
            return None, doubt
        record = conversation(row.get("id", f"{path.stem}-{index}"), prompt, (), answers[label], where)
        return replace(record, rejected=answers[1 - label]), doubt


def _flag(row: Row, key: str, where: str) -> bool | None:
    value: Any = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} is {shown(value)}; expected true or false.")
    return value
