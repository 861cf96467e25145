"""Running a filter over a data file: checked first, then chunk by chunk, so that a killed run continues."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hpa_lightning.data.record import Record, missing_images
from hpa_lightning.files import name_folder, naming_path
from hpa_lightning.filtering.assessment import Assessment, Finding, HarmFilter, worst
from hpa_lightning.filtering.data_rows import DataRow, DataRows
from hpa_lightning.filtering.decision import FilterRule
from hpa_lightning.filtering.filter_counts import FilterCounts
from hpa_lightning.filtering.filter_folder import FINDINGS, is_finished, partial_folder, refuse_input, settings_of
from hpa_lightning.filtering.findings_log import FindingsLog, RowFindings, filled, read_findings
from hpa_lightning.filtering.turn_texts import ROLES, turn_texts
from hpa_lightning.values import cut, shown

REASONS, COUNTS = "reasons.jsonl", "counts.json"
_FIRST = 8
"""Records of which a part has to have assessed one; else it is no filter, or the wrong one."""


@dataclass(frozen=True)
class FilterOutcome:
    """What a run wrote.

    Args:
        kept: the file of the records that are kept, in the format of the input.
        dropped: the file of the others.
        counts: over all records.
    """

    kept: Path
    dropped: Path
    counts: FilterCounts


def filter_data(
    path: str | Path,
    parts: Mapping[str, HarmFilter],
    output: str | Path,
    image_folder: str | Path | None = None,
    rule: FilterRule | None = None,
    chunk: int = 64,
    progress: bool = False,
) -> FilterOutcome:
    """Filter a data file; a run that was killed continues where it was, with the same result to the bit.

    Args:
        path: JSON, JSON lines or parquet in a form that :func:`~hpa_lightning.data.read_records` knows, or VLGuard's.
            It is only read.
        parts: name -> part, see :class:`HarmFilter`.
        output: a folder, made when all is done: ``kept`` and ``dropped`` with the ending of ``path``, each record as it
            is there; ``reasons.jsonl``, why the dropped ones were; ``findings.jsonl``, what every part says of
            every record; ``counts.json``; ``settings.json``. Until then ``OUTPUT.partial`` holds what a run continues
            with.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        rule: when a record is dropped; ``FilterRule()`` when ``None``: where any part finds it harmful. The rule,
            unlike all else, may be another one when a run continues: it is applied in the end.
        chunk: records that parts are given at a time; a killed run loses at most one chunk.
        progress: show bars with the time that is left.

    Raises:
        ValueError: named by file and record: data that are broken, a picture that cannot be read, a record that a part
            cannot assess (where the rule says so); an output that is there already, or that other settings began.
    """
    rule = rule or FilterRule()
    _check(parts, rule, chunk)
    output, rows = Path(output), DataRows(path, image_folder)
    refuse_input(rows.path, output)
    settings = settings_of(rows, parts, rule, chunk)
    names = [f"{name}{rows.path.suffix.lower()}" for name in ("kept", "dropped")]
    if is_finished(output, settings):
        counts = FilterCounts(list(parts))
        for found in read_findings(output / FINDINGS):
            counts.add(found, rule.reasons(found.findings, found.id))
        return FilterOutcome(output / names[0], output / names[1], counts)
    _load(parts)
    total = sum(1 for _ in _first_pass(rows, parts, rule, None, progress))
    with partial_folder(output, settings) as folder:
        log = FindingsLog(folder / FINDINGS, chunk, total)
        try:
            with tqdm(total=total, initial=log.done, desc="Filtering", unit=" records", disable=not progress) as bar:
                for several in _assessed(rows.from_index(log.done), parts, chunk):
                    log.write(several)
                    for found in several:
                        rule.reasons(found.findings, rows.where(found.index))  # may be to stop
                    bar.update(len(several))
        finally:
            log.close()
        with naming_path(output):
            counts = _write(rows, folder, rule, list(parts), folder / names[0], folder / names[1])
            name_folder(folder, output)
    return FilterOutcome(output / names[0], output / names[1], counts)


def preview_filter(
    path: str | Path,
    parts: Mapping[str, HarmFilter],
    limit: int,
    image_folder: str | Path | None = None,
    rule: FilterRule | None = None,
    examples: int = 3,
    chunk: int = 64,
    progress: bool = False,
) -> tuple[FilterCounts, list[str]]:
    """Filter the first ``limit`` records and write nothing.

    Args:
        path: see :func:`filter_data`, as the others below.
        parts: see there.
        limit: records.
        image_folder: see there.
        rule: see there.
        examples: how many records that it finds harmful, or cannot assess, are shown of each part.
        chunk: see there.
        progress: see there.

    Returns:
        The counts, and the examples, a text each.
    """
    rule = rule or FilterRule()
    _check(parts, rule, chunk)
    if limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1 record.")
    rows = DataRows(path, image_folder)
    _load(parts)
    first = list(_first_pass(rows, parts, rule, limit, progress))
    counts = FilterCounts(list(parts))
    texts: list[str] = []
    left = dict.fromkeys(parts, examples)
    with tqdm(total=len(first), desc="Filtering", unit=" records", disable=not progress) as bar:
        for several in _assessed(iter(first), parts, chunk):
            for found in several:
                row = first[found.index]
                counts.add(found, rule.reasons(found.findings, row.where))
                for name, one in found.findings.items():
                    if one.assessment not in (Assessment.HARMLESS, Assessment.NOTHING) and left[name]:
                        left[name] -= 1
                        texts.append(f"{row.where}, {name}: {_in_words(one, row)}")
            bar.update(len(several))
    return counts, texts


def _check(parts: Mapping[str, HarmFilter], rule: FilterRule, chunk: int) -> None:
    if not parts:
        raise ValueError("the filter has no parts; expected at least one, such as a list of phrases or a guard model.")
    for name, part in parts.items():
        if not callable(part) or isinstance(part, type):
            raise ValueError(f"the part {name!r} is {shown(part)}; expected an object that is called with records.")
    if rule.votes is not None and rule.votes > len(parts):
        raise ValueError(f"votes is {rule.votes} of {len(parts)} parts; no record could be dropped.")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 record.")


def _load(parts: Mapping[str, HarmFilter]) -> None:
    for part in parts.values():
        if callable(load := getattr(part, "load", None)):
            load()


def _first_pass(
    rows: DataRows, parts: Mapping[str, HarmFilter], rule: FilterRule, stop: int | None, progress: bool
) -> Iterator[DataRow]:
    """Read every record, before a model works for hours."""
    sees = any(getattr(part, "reads_images", False) for part in parts.values())
    for row in rows.check(stop, progress):
        if row.problem and rule.bad_records == "stop":
            raise ValueError(f"{row.problem.rstrip('.')}. To leave such records out: bad_records is 'drop'.")
        if sees and rule.unreadable == "stop":
            for where, image in missing_images(row.records):
                raise ValueError(
                    f"{where}: image file {image!r} does not exist; check image_folder, or say what becomes of such "
                    "records: unreadable is 'stop', 'drop' and 'keep' are the others."
                )
        yield row


def _assessed(rows: Iterator[DataRow], parts: Mapping[str, HarmFilter], chunk: int) -> Iterator[list[RowFindings]]:
    """What the parts say, chunk by chunk."""
    while several := list(islice(rows, chunk)):
        records = [record for row in several for record in row.records]
        by_part: dict[str, Iterator[Finding]] = {}
        for name, part in parts.items():
            said = _asked(name, part, several, records) if records else []
            _check_findings(name, said, len(records))
            unsure = all(one.assessment is Assessment.NO_VERDICT for one in said)
            if several[0].index == 0 and len(said) >= _FIRST and unsure:
                raise ValueError(
                    f"the part {name!r} gave no verdict on any of the first {len(said)} records "
                    f"({cut(said[0].detail, 300)}); is it the right model, with the right settings?"
                )
            by_part[name] = iter(said)
        yield [
            RowFindings(row.index, row.id, {}, row.problem)
            if row.problem
            else RowFindings(row.index, row.id, {name: _of_row(row, said) for name, said in by_part.items()})
            for row in several
        ]


def _asked(name: str, part: HarmFilter, rows: Sequence[DataRow], records: Sequence[Record]) -> list[Finding]:
    """What a part says; an error names the part and the rows."""
    try:
        return list(part(records))
    except Exception as error:  # of models and of users' code: all there are
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        told = f"{type(error).__name__}: " * (kind is RuntimeError) + cut(error, 700)
        raise kind(f"the part {name!r} failed on {rows[0].where} to {rows[-1].where}: {told}") from error


def _of_row(row: DataRow, said: Iterator[Finding]) -> Finding:
    """Put what a part says of a row's records together; where there are several, each is named by its id."""
    pairs = zip(row.records, islice(said, len(row.records)), strict=True)
    return worst(replace(one, where=_place(row, record, one.where)) for record, one in pairs)


def _place(row: DataRow, record: Record, where: str) -> str:
    return where if len(row.records) == 1 or not where else f"{record.id}, {where}"


def _check_findings(name: str, findings: Sequence[Any], expected: int) -> None:
    if len(findings) != expected:
        raise ValueError(f"the part {name!r} said {len(findings)} things of {expected} records; expected one of each.")
    for one in findings:
        if not isinstance(one, Finding):
            raise ValueError(f"the part {name!r} returned {shown(one)}; expected a Finding, such as Finding.of(True).")


def _write(rows: DataRows, folder: Path, rule: FilterRule, parts: list[str], kept: Path, dropped: Path) -> FilterCounts:
    """Apply the rule to what was found, and write what follows."""
    counts = FilterCounts(parts)
    with (folder / REASONS).open("w", encoding="utf-8", errors="backslashreplace") as file:

        def is_kept() -> Iterator[bool]:
            for row, found in zip(rows.from_index(0), read_findings(folder / FINDINGS), strict=True):
                reasons = rule.reasons(found.findings, row.where)
                counts.add(found, reasons)
                if reasons or found.problem:
                    file.write(json.dumps(_told(row, found, reasons), ensure_ascii=False) + "\n")
                yield not (reasons or found.problem)

        rows.copy(is_kept(), kept, dropped)
    (folder / COUNTS).write_text(counts.json(), encoding="utf-8")
    for left in folder.glob("*.unfinished"):  # by a run that was killed
        left.unlink()
    return counts


def _told(row: DataRow, found: RowFindings, reasons: Sequence[str]) -> dict[str, Any]:
    """Why a record is dropped, with the text in which it was found."""
    line: dict[str, Any] = {"index": row.index, "id": row.id}
    if found.problem:
        return {**line, "problem": found.problem}
    chosen = {name: found.findings[name] for name in reasons}
    return {**line, "reasons": [{"part": name, **filled(one), **_text(row, one)} for name, one in chosen.items()]}


def _text(row: DataRow, finding: Finding) -> dict[str, str]:
    texts = {_place(row, record, place): text for record in row.records for place, text in turn_texts(record, ROLES)}
    return {"text": cut(texts[finding.where], 300)} if finding.where in texts else {}


def _in_words(finding: Finding, row: DataRow) -> str:
    score = "" if finding.score is None else f" ({finding.score:.3f})"
    what = ", ".join(filter(None, [finding.label + score, *finding.categories]))
    text = _text(row, finding).get("text", "")
    said = [finding.assessment.value, what, finding.where, finding.detail, shown(text) if text else ""]
    return "; ".join(filter(None, said))
