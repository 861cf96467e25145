"""The findings of a filter, a line for each record, in a file that a killed run continues with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpa_lightning.filtering.assessment import Assessment, Finding
from hpa_lightning.parsing import parse_json


@dataclass(frozen=True)
class RowFindings:
    """What all parts say of one row of the data.

    Args:
        index: of the row, from 0 on.
        id: of the row.
        findings: part -> finding, in the order of the parts.
        problem: why the row cannot be read; there are no findings then.
    """

    index: int
    id: str
    findings: Mapping[str, Finding]
    problem: str = ""

    def line(self) -> str:
        """Return the line of the file; what is empty is left out."""
        said: dict[str, Any] = {"index": self.index, "id": self.id}
        if self.problem:
            said["problem"] = self.problem
        else:
            said["findings"] = {name: filled(one) for name, one in self.findings.items()}
        return json.dumps(said, ensure_ascii=False) + "\n"

    @classmethod
    def of_line(cls, line: bytes, where: str) -> RowFindings:
        """Read a line.

        Raises:
            ValueError: named by ``where``: it is broken, or no such line.
        """
        said = parse_json(line, where)
        try:
            findings = {name: _finding(**one) for name, one in said.get("findings", {}).items()}
            return cls(said["index"], said["id"], findings, said.get("problem", ""))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} holds no findings of a filter: {error}.") from error


class FindingsLog:
    """A file of findings that grows by whole chunks.

    Args:
        path: the file; made if it does not exist.
        chunk: records that are assessed, and written, together. What a killed run has left of a chunk is cut off.
        total: records of the data.

    Attributes:
        done: records whose findings are there.
    """

    def __init__(self, path: Path, chunk: int, total: int) -> None:
        self.done, whole, end = 0, 0, 0
        if path.exists():
            with path.open("rb") as file:
                while (line := file.readline()).endswith(b"\n") and _is_of(line, whole):
                    whole += 1
                    if whole % chunk == 0 or whole == total:
                        self.done, end = whole, file.tell()
        self._file = path.open("ab")
        self._file.truncate(end)

    def write(self, rows: Sequence[RowFindings]) -> None:
        """Add the findings of a chunk, and wait until they are on the disk."""
        self._file.write("".join(row.line() for row in rows).encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_findings(path: Path) -> Iterator[RowFindings]:
    """Yield what the parts said, row by row.

    Raises:
        ValueError: named by file and line: it is broken.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield RowFindings.of_line(line, f"{path.name}, line {number}")


def filled(finding: Finding) -> dict[str, Any]:
    """Return a finding as a line has it: without what is empty."""
    found = {key: value for key, value in asdict(finding).items() if value not in ("", (), None)}
    found["assessment"] = finding.assessment.value
    if finding.score is not None:
        found["score"] = round(finding.score, 6)
    return found


def _finding(assessment: str, categories: Sequence[str] = (), **others: Any) -> Finding:
    return Finding(Assessment(assessment), categories=tuple(categories), **others)


def _is_of(line: bytes, index: int) -> bool:
    try:
        return RowFindings.of_line(line, "").index == index
    except ValueError:  # of a disk that lost its power: not what was written
        return False
