"""Records that a processor or a model cannot take: named, or left out and counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.memory import is_oom_error

from hpa_lightning.data.record import Record

T = TypeVar("T")

STOP, SKIP = "stop", "skip"
_EXAMPLES = 5


def naming_records(collate: Callable[[Sequence[Record]], T], records: Sequence[Record]) -> T:
    """Return ``collate(records)``; an error names the record that it comes from.

    Raises:
        ValueError: named by the record that fails alone, else by all of the batch.
    """
    try:
        return collate(records)
    except MemoryError:
        raise
    except Exception as error:
        if len(records) > 1:
            for record in records:
                problem = problem_of(collate, record)
                if problem is not None:
                    raise ValueError(problem) from error
        elif any(record.where in str(error) for record in records):
            raise
        names = ", ".join(record.where for record in records)
        raise ValueError(f"{names}: {_error_text(error)}" if names else str(error)) from error


def problem_of(collate: Callable[[Sequence[Record]], Any], record: Record) -> str | None:
    """Why ``record`` cannot be collated, with its name; ``None`` if it can."""
    try:
        collate([record])
    except MemoryError:
        raise
    except Exception as error:
        return str(error) if record.where in str(error) else f"{record.where}: {_error_text(error)}"
    return None


@contextmanager
def naming_failure(names: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Say which records a model was at when it failed. Running out of memory is passed on as it is.

    Args:
        names: asked for after a failure; none where they are not known.

    Raises:
        RuntimeError: instead of what the model raised.
    """
    try:
        yield
    except Exception as error:
        known = [] if isinstance(error, MemoryError) or is_oom_error(error) else list(names())
        if not known:
            raise
        raise RuntimeError(f"the model failed on the batch of {', '.join(known)}: {_error_text(error)}") from error


class SkippingCollate:
    """Collates what can be collated and tells what cannot, for a loader that unpacks it.

    A batch keeps at least one record, so that all processes have equally many batches: where none can be collated, a
    record from elsewhere in ``records`` takes their place, drawn by the batch's ids.

    Args:
        collate: records -> batch.
        records: what batches are drawn from.
    """

    def __init__(self, collate: Callable[[Sequence[Record]], T], records: Sequence[Record]) -> None:
        self._collate = collate
        self._records = records

    def __call__(self, records: Sequence[Record]) -> tuple[Any, dict[str, str]]:
        """Return the batch, and name -> problem of the records that are not in it."""
        try:
            return self._collate(records), {}
        except MemoryError:
            raise
        except Exception:
            problems = {record.where: problem_of(self._collate, record) for record in records}
            bad = {where: problem for where, problem in problems.items() if problem is not None}
            good = [record for record in records if record.where not in bad]
            if not bad:  # they fail together alone: no record is to blame
                raise
            return self._collate(good or [self._substitute(records)]), bad

    def _substitute(self, records: Sequence[Record]) -> Record:
        from hpa_lightning.data.batch_order import named_generator

        generator = named_generator("substitute", *(record.id for record in records))
        for index in torch.randperm(len(self._records), generator=generator):
            record = self._records[int(index)]
            if problem_of(self._collate, record) is None:
                return record
        raise ValueError(f"none of {len(self._records)} records can be used; the first: {records[0].where}.")


def without_bad_records(
    collate: Callable[[Sequence[Record]], Any], records: Iterator[Record], size: int, what: str
) -> list[Record]:
    """Return the first ``size`` records that can be collated, with one warning about the others."""
    good: list[Record] = []
    bad: dict[str, str] = {}
    for record in records:
        if len(good) == size:
            break
        problem = problem_of(collate, record)
        if problem is None:
            good.append(record)
        else:
            bad[record.where] = problem
    report_skipped(list(bad.values()), what)
    return good


def report_skipped(problems: Sequence[str], what: str) -> None:
    """Warn of the records that were left out, if there are any."""
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems[:_EXAMPLES])
        more = f"\n  - and {len(problems) - _EXAMPLES} more" if len(problems) > _EXAMPLES else ""
        warnings.warn(
            f"{what}: {len(problems)} records were skipped, since they cannot be used:{listed}{more}", stacklevel=3
        )


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip()
