"""Filled forms: read, checked against the key, told by name where they cannot be taken."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpa_lightning.data.readers.table_files import LONGEST_CELL
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.rating.form import CSV_COLUMNS, FORMAT, on_page
from hpa_lightning.rating.rubric import BY_NAME, SCALES
from hpa_lightning.table import csv_cell
from hpa_lightning.values import names, shown


@dataclass(frozen=True)
class Filled:
    """One rater's ratings.

    Args:
        rater: the name.
        path: the file.
        ratings: item -> for each place of the form scale -> value; what was not rated is missing.
    """

    rater: str
    path: Path
    ratings: Mapping[str, Sequence[Mapping[str, int]]]

    def missing(self) -> dict[str, int]:
        """Scale -> how many answers have no value, where any has none."""
        answers = [values for places in self.ratings.values() for values in places]
        counts = {scale.name: sum(scale.name not in values for values in answers) for scale in SCALES}
        return {name: count for name, count in counts.items() if count}


_AS_WRITTEN = "expected them as `rate export --key` wrote them"


def read_key(path: str | Path) -> dict[str, Any]:
    """Read the key of a form.

    Raises:
        ValueError: it is none.
    """
    path = Path(path)
    key = parse_json(read_text(path), path.name)
    needed = ("form", "shown", "runs", "items")
    if not isinstance(key, dict) or key.get("format") != FORMAT or not all(name in key for name in needed):
        raise ValueError(f"{path} is not the key of a rating form; expected what `rate export --key` wrote.")
    _check_key(key, path)
    return key


def _check_key(key: Mapping[str, Any], path: Path) -> None:
    """Check that runs and items of a key are as they were written.

    Raises:
        ValueError: one is not, by its place.
    """
    runs, items = key["runs"], key["items"]
    if not isinstance(runs, list) or not runs or not all(_has_texts(run, "path", "method") for run in runs):
        raise ValueError(f"{path}: the runs are {shown(runs)}; {_AS_WRITTEN}.")
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path}: the items are {shown(items)}; {_AS_WRITTEN}.")
    places = list(range(len(runs)))
    for number, item in enumerate(items):
        each: list[Any] = (
            [item.get(name) for name in ("order", "answers", "verdicts")] if isinstance(item, dict) else []
        )
        whole = _has_texts(item, "id", "kind", "question") and all(
            isinstance(one, list) and len(one) == len(runs) for one in each
        )
        if not whole or not (
            all(type(place) is int for place in each[0])
            and sorted(each[0]) == places
            and all(isinstance(answer, str) for answer in each[1])
            and all(isinstance(verdict, dict) for verdict in each[2])
        ):
            raise ValueError(f"{path}: items[{number}] is {shown(item)}; {_AS_WRITTEN}.")
    if len({item["id"] for item in items}) < len(items):
        raise ValueError(f"{path}: two items have one id; {_AS_WRITTEN}.")


def _has_texts(entry: Any, *keys: str) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in keys)


def read_filled(files: Sequence[str | Path], key: Mapping[str, Any], incomplete: bool = False) -> list[Filled]:
    """Read the raters' files, JSON of the page or the filled CSV, and check them.

    Args:
        files: one for each rater.
        key: of the form.
        incomplete: take forms on which something is not rated.

    Raises:
        ValueError: no file; a file of another form or of one whose texts were changed, without a rater's name, with an
            item or a value that the form does not have; two files of one rater; an incomplete form, unless taken.
    """
    if not files:
        raise ValueError("there is no filled form; expected the file of each rater.")
    found: dict[str, Filled] = {}
    for file in map(Path, files):
        filled = _from_csv(file, key) if file.suffix.lower() == ".csv" else _from_json(file, key)
        twin = found.get(filled.rater.casefold())
        if twin is not None:
            raise ValueError(
                f"{twin.path} and {file} are both of the rater {filled.rater!r}; pass one of them, or correct the name."
            )
        if (missing := filled.missing()) and not incomplete:
            total = sum(map(len, filled.ratings.values()))
            counts = ", ".join(f"{count} of {total} answers have no {name}" for name, count in missing.items())
            raise ValueError(
                f"{file} of {filled.rater!r} is incomplete: {counts}; have it completed, or pass --incomplete."
            )
        found[filled.rater.casefold()] = filled
    return list(found.values())


def _from_json(path: Path, key: Mapping[str, Any]) -> Filled:
    content = parse_json(read_text(path), path.name)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} holds no ratings; expected the JSON file that the form exports.")
    if content.get("form") != key["form"]:
        raise ValueError(
            f"{path} is of the form {shown(content.get('form'))}; the key is that of {shown(key['form'])}."
        )
    if content.get("shown") != key["shown"]:
        raise ValueError(
            f"{path} is of a form whose texts were changed: what its rater saw is not what was exported. Its ratings "
            "cannot be taken; have the exported form rated."
        )
    rater, ratings = content.get("rater"), content.get("ratings")
    if not isinstance(rater, str) or not rater.strip():
        raise ValueError(f"{path} names no rater; have the name written on the form and export it again.")
    if not isinstance(ratings, dict):
        raise ValueError(f"{path}: the ratings are {shown(ratings)}; expected an object.")
    return Filled(rater.strip(), path, _checked(ratings, key, path))


def _checked(ratings: Mapping[str, Any], key: Mapping[str, Any], path: Path) -> dict[str, list[dict[str, int]]]:
    """The ratings of every item of the form, with known values alone."""
    items = {item["id"]: item for item in key["items"]}
    if unknown := set(ratings) - set(items):
        raise ValueError(f"{path} rates {names(sorted(unknown))}, which the form does not have.")
    found: dict[str, list[dict[str, int]]] = {}
    for name, item in items.items():
        places = ratings.get(name, [{} for _ in item["order"]])
        if not isinstance(places, list) or len(places) != len(item["order"]):
            raise ValueError(
                f"{path}: {name} has ratings {shown(places)}; expected those of {len(item['order'])} answers."
            )
        found[name] = []
        for values in places:
            for scale, value in values.items() if isinstance(values, dict) else [("", values)]:
                if scale not in BY_NAME or type(value) is not int or value not in BY_NAME[scale].values:
                    expected = {scale.name: list(scale.values) for scale in SCALES}
                    raise ValueError(f"{path}: {name} has {scale!r}: {shown(value)}; expected {expected}.")
            found[name].append({scale: int(value) for scale, value in values.items()})
    return found


def _from_csv(path: Path, key: Mapping[str, Any]) -> Filled:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        return _from_rows(reader, path, key)
    except csv.Error as error:
        raise ValueError(f"{path}: broken in the row behind line {reader.line_num}: {error}.") from error


def _from_rows(reader: csv.DictReader[str], path: Path, key: Mapping[str, Any]) -> Filled:
    if list(reader.fieldnames or ()) != list(CSV_COLUMNS):
        raise ValueError(f"{path} has the columns {names(reader.fieldnames or ())}; expected {list(CSV_COLUMNS)}.")
    items = {item["id"]: item for item in key["items"]}
    ratings: dict[str, list[dict[str, Any]]] = {name: [{} for _ in item["order"]] for name, item in items.items()}
    raters, seen = set(), set()
    for number, row in enumerate(reader, start=2):
        where = f"{path}, row {number}"
        if row["form"] != key["form"]:
            raise ValueError(f"{where} is of the form {shown(row['form'])}; the key is that of {shown(key['form'])}.")
        item = items.get(row["item"] or "")
        place = int(row["answer"]) - 1 if (row["answer"] or "").isdecimal() else -1
        if item is None or not 0 <= place < len(item["order"]) or (row["item"], place) in seen:
            what = f"item {shown(row['item'])}, answer {shown(row['answer'])}"
            raise ValueError(f"{where}: {what} occurs twice, or is not in the form.")
        seen.add((row["item"], place))
        texts = (item["question"], item["answers"][item["order"][place]])
        if any(
            _plain(row[column]) != _plain(csv_cell(text))
            for column, text in zip(("question", "text"), texts, strict=True)
        ):
            raise ValueError(
                f"{where}: the question or the answer was changed; what was rated is not what was exported."
            )
        raters |= {(row["rater"] or "").strip()} - {""}
        for scale in SCALES:
            if cell := (row[scale.name] or "").strip():
                ratings[row["item"]][place][scale.name] = int(cell) if cell.isdecimal() else cell
    if len(raters) != 1:
        raise ValueError(f"{path} names the raters {names(sorted(raters))}; expected one, in at least one row.")
    return Filled(raters.pop(), path, _checked(ratings, key, path))


def _plain(text: str | None) -> str:
    """A text without what a spreadsheet changes: line ends, and spaces at the ends."""
    return on_page(text or "").strip()


def value_or_nan(values: Mapping[str, int], scale: str) -> float:
    """The rating on a scale; NaN where there is none."""
    return float(values[scale]) if scale in values else math.nan
