"""Pairs files: which methods of two studies are the same, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import read_text
from hpa_lightning.study.entry_checks import check_keys, check_texts, check_types
from hpa_lightning.study.store import default_store
from hpa_lightning.values import shown

_SIDE_KEYS = {"study", "archives", "store", "runs"}
_RUNS_KEYS = {"title", "condition", "groups", "seeds"}
_SIDES = ("first", "second")


@dataclass(frozen=True)
class Selection:
    """Some runs of a study.

    Args:
        title: what they are, in tables.
        condition: of the data.
        groups: only cells of these groups; of all when empty.
        seeds: only these; all when empty.
    """

    title: str
    condition: str
    groups: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Side:
    """One of the two studies.

    Args:
        study: its file.
        archives: files of finished cells.
        store: folder of its runs.
        selections: the runs that are compared, each of them with each of the other side.
    """

    study: Path
    archives: tuple[Path, ...]
    store: Path
    selections: tuple[Selection, ...]


@dataclass(frozen=True)
class SameMethod:
    """One method under its names in both studies."""

    title: str
    first: str
    second: str


@dataclass(frozen=True)
class PairsFile:
    """A pairs file, checked; whether the studies have what it names is not known yet."""

    title: str
    text: str
    first: Side
    second: Side
    pairs: tuple[SameMethod, ...]


def read_pairs(path: str | PathLike[str]) -> PairsFile:
    """Read a pairs file; the paths in it start from its folder.

    Raises:
        ValueError: unknown or missing keys, entries of another type, or a title or a method that stands in two pairs.
        OSError: it cannot be read.
    """
    where = str(path)
    content = load_yaml(read_text(path), where)
    needed = {*_SIDES, "pairs"}
    check_keys(content, {"title", "text", *needed}, needed, where)
    check_texts(content, ("title", "text"), where)
    first, second = (_side(content[name], Path(path).parent, f"{where}, {name}") for name in _SIDES)
    pairs = _pairs(content["pairs"], f"{where}, pairs")
    return PairsFile(content.get("title", Path(path).stem), content.get("text", ""), first, second, pairs)


def _side(entry: Any, folder: Path, where: str) -> Side:
    check_keys(entry, _SIDE_KEYS, {"study", "runs"}, where)
    check_texts(entry, ("study", "store"), where)
    archives = _list(entry, "archives", str, where)
    selections = tuple(_selection(item, f"{where}, runs") for item in _list(entry, "runs", object, where))
    if not selections:
        raise ValueError(f"{where}: runs are empty; expected at least one title with a condition.")
    _check_distinct([item.title for item in selections], f"{where}, runs", "title")
    study = folder / entry["study"]
    store = folder / entry["store"] if "store" in entry else default_store(study)
    return Side(study, tuple(folder / name for name in archives), store, selections)


def _selection(entry: Any, where: str) -> Selection:
    check_keys(entry, _RUNS_KEYS, {"title", "condition"}, where)
    check_texts(entry, ("title", "condition"), where)
    groups, seeds = _list(entry, "groups", str, where), _list(entry, "seeds", int, where)
    return Selection(entry["title"], entry["condition"], groups, seeds)


def _pairs(entries: Any, where: str) -> tuple[SameMethod, ...]:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where} are {shown(entries)}; expected a list of title, first and second.")
    keys = {"title", *_SIDES}
    for entry in entries:
        check_keys(entry, keys, keys, where)
        check_texts(entry, keys, where)
    for key in ("title", *_SIDES):
        _check_distinct([entry[key] for entry in entries], where, f"{key} method" if key in _SIDES else key)
    return tuple(SameMethod(entry["title"], entry["first"], entry["second"]) for entry in entries)


def _list(entry: Mapping[str, Any], key: str, kind: type, where: str) -> tuple[Any, ...]:
    check_types(entry, {key: list}, where)
    values: Sequence[Any] = entry.get(key) or ()
    for value in values:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            what = "whole numbers" if kind is int else "texts"
            raise ValueError(f"{where}: {key} has {shown(value)}; expected {what}.")
    return tuple(values)


def _check_distinct(values: Sequence[str], where: str, what: str) -> None:
    if twice := [value for value, number in Counter(values).items() if number > 1]:
        raise ValueError(f"{where}: the {what} {shown(twice[0])} stands twice; expected each once.")
