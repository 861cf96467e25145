"""The grid: methods, conditions, settings and seeds in YAML, each cell one configuration of `hpa-lightning fit`."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import fill, load_yaml
from hpa_lightning.parsing import read_text
from hpa_lightning.values import cut, names, shown

_STUDY_KEYS = {"title", "text", "base", "columns", "conditions", "methods", "groups"}
_METHOD_KEYS = {"title", "callbacks", "config", "grid", "windows", "after"}
_WINDOW_KEYS = {"blocks", "size", "stride"}
_GROUP_KEYS = {"title", "text", "methods", "conditions", "seeds", "reference", "x", "curves", "matrices", "columns"}
_AXIS_KEYS = {"setting", "label", "logarithmic"}


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        method: name in the study file; with a grid the values stand behind it (``retention[p=5]``).
        title: the method's name in tables.
        condition: name of the data condition.
        seed: of the run.
        config: what ``hpa-lightning fit --config`` gets; ``${folder}`` stands for the cell's folder.
        values: the grid's values of this point.
        after: the run that must be finished before; ``${start}`` in ``config`` stands for its folder.
    """

    method: str
    title: str
    condition: str
    seed: int
    config: Mapping[str, Any] = field(compare=False)
    values: Mapping[str, Any] = field(compare=False, default_factory=dict)
    after: Cell | None = field(compare=False, default=None)

    @property
    def family(self) -> str:
        """The method's name without the grid's values."""
        return self.method.partition("[")[0]

    @property
    def key(self) -> str:
        """Distinct in the study, and usable as the path of a folder."""
        return f"{self.condition}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.method).strip('-')}/seed_{self.seed}"

    @property
    def digest(self) -> str:
        """Of everything that decides the run's outcome; the title and the folder do not."""
        # What it starts with is a part of it, and the place of the store is not.
        start = {} if self.after is None else {"start": self.after.digest}
        config = fill(self.config, {"title": "", "folder": "", **start})
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]

    def config_for(self, folder: Path) -> dict[str, Any]:
        """The configuration with the cell's folder filled in, and that of the run it starts with."""
        start = {} if self.after is None else {"start": str(folder.parents[2] / self.after.key)}
        found: dict[str, Any] = fill(self.config, {"title": self.title, "folder": str(folder), **start})
        return found


@dataclass(frozen=True)
class Group:
    """Cells that are shown together.

    Args:
        name: on the command line.
        title, text: in the report.
        cells: method by method, in the order of the study file.
        references: methods that the others are compared with, each in a table of its own.
        x: the axis of a sweep: ``setting`` (a name of the methods' grids), ``label``, ``logarithmic``.
        curves: methods in the figure of every step; chosen by the report when ``None``.
        matrices: methods whose mean score matrix is shown.
        columns: further columns of the tables: heading -> evaluation sets whose mean score stands there.
    """

    name: str
    title: str
    text: str
    cells: tuple[Cell, ...]
    references: tuple[str, ...] = ()
    x: Mapping[str, Any] | None = None
    curves: tuple[str, ...] | None = None
    matrices: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study file, expanded."""

    title: str
    text: str
    groups: tuple[Group, ...]

    def cells(self, groups: list[str] | None = None) -> list[Cell]:
        """Every run once, seed by seed within each group, so that an interrupted study has whole seeds.

        Of cells that are the same run under several names, the first one stands for all.

        Raises:
            ValueError: a group that the study does not have.
        """
        known = {group.name: group for group in self.groups}
        unknown = [name for name in groups or () if name not in known]
        if unknown:
            raise ValueError(f"the study has no group {unknown[0]!r}; its groups are {list(known)}.")
        chosen = [known[name] for name in groups] if groups else list(self.groups)
        found: dict[str, Cell] = {}
        for group in chosen:
            for cell in sorted(group.cells, key=lambda cell: [c.seed for c in group.cells].index(cell.seed)):
                chain = [cell]
                while (before := chain[-1].after) is not None:
                    chain.append(before)
                for item in reversed(chain):
                    found.setdefault(item.digest, item)
        return list(found.values())


def read_study(path: str | PathLike[str]) -> Study:
    """Read and expand a study file.

    Raises:
        ValueError: unknown or missing keys, a group that names an unknown method or condition, two different runs
            under one name, or a placeholder without a value.
    """
    return expand_study(load_yaml(read_text(path), str(path)), path)


def expand_study(content: Any, path: str | PathLike[str]) -> Study:
    """Expand what stands in a study file; ``path`` is its name in errors.

    Raises:
        ValueError: as :func:`read_study`.
    """
    _check_keys(content, _STUDY_KEYS, {"base", "methods", "groups"}, str(path))
    for what in ("methods", "groups", "conditions", "base"):
        if what in content and not isinstance(content[what], Mapping):
            raise ValueError(f"{path}, {what}: {shown(content[what])}; expected a mapping by name.")
        for name in content.get(what) or () if what != "base" else ():
            # The name of a condition is that of a folder in the store, and must not lead out of it.
            if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"{path}, {what}: the name {shown(name)}; expected a text without slashes.")
    conditions = content.get("conditions") or {"default": {}}
    for name, entry in conditions.items():
        if entry is not None and not isinstance(entry, Mapping):
            raise ValueError(f"{path}, condition {name!r} is {shown(entry)}; expected a mapping.")
    methods = {name: _method(name, entry, f"{path}, method {name!r}") for name, entry in content["methods"].items()}
    _check_order(methods, str(path))
    columns = _columns(content.get("columns"), str(path))
    groups = tuple(
        _group(name, entry, content["base"], conditions, methods, columns, f"{path}, group {name!r}")
        for name, entry in content["groups"].items()
    )
    study = Study(content.get("title", Path(path).stem), content.get("text", ""), groups)
    _check_names(study)
    return study


@dataclass(frozen=True)
class _Point:
    """A method at one point of its grid."""

    name: str
    title: str
    callbacks: list[Any]
    config: dict[str, Any]
    values: dict[str, Any]
    after: str | None = None


def _method(name: str, entry: Any, where: str) -> list[_Point]:
    """The points of a method's grid, checked."""
    _check_keys(entry, _METHOD_KEYS, {"title"}, where)
    _check_types(
        entry, {"callbacks": list, "config": Mapping, "grid": Mapping, "windows": Mapping, "after": str}, where
    )
    if (windows := entry.get("windows")) is not None:
        _check_windows(windows, where)
    for axis, values in (entry.get("grid") or {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}, grid: {axis} is {shown(values)}; expected a list of values.")
    try:
        points = list(_points(name, entry))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len({_canonical([point.callbacks, point.config], where) for point in points}) < len(points):
        raise ValueError(f"{where}: points of its grid are the same run; expected ${{...}} for every axis of it.")
    return points


def _group(
    name: str,
    entry: Any,
    base: Mapping[str, Any],
    conditions: Mapping[str, Any],
    methods: Mapping[str, list[_Point]],
    columns: Mapping[str, Sequence[str]],
    where: str,
) -> Group:
    _check_keys(entry, _GROUP_KEYS, {"title", "methods", "seeds"}, where)
    _check_types(entry, dict.fromkeys(("methods", "seeds", "conditions", "curves", "matrices"), list), where)
    if not entry["seeds"] or not all(type(seed) is int for seed in entry["seeds"]):
        raise ValueError(f"{where}: seeds are {shown(entry['seeds'])}; expected whole numbers.")
    reference = entry.get("reference")
    references = (reference,) if isinstance(reference, str) else reference or ()
    lists = {key: entry.get(key) or () for key in ("methods", "conditions", "curves", "matrices")}
    for key, listed in (lists | {"reference": references}).items():
        if not isinstance(listed, list | tuple) or not all(isinstance(item, str) for item in listed):
            raise ValueError(f"{where}: {key} is {shown(listed)}; expected names.")
    if not lists["methods"]:
        raise ValueError(f"{where}: methods are {shown(entry['methods'])}; expected names.")
    chosen = _points_of(list(lists["methods"]), methods, where)
    found = [point.name for point in chosen]
    wanted = entry.get("conditions") or list(conditions)
    for what, listed in (("methods", found), ("seeds", entry["seeds"]), ("conditions", wanted)):
        if twice := [item for number, item in enumerate(listed) if item in listed[:number]]:
            raise ValueError(
                f"{where}: {what} name {shown(twice[0])} twice; expected each once (a grid's name is all of it)."
            )
    if unknown := [condition for condition in wanted if condition not in conditions]:
        raise ValueError(f"{where}: no condition {shown(unknown[0])}; there are {names(conditions)}.")
    if unknown := [method for method in references if method not in found]:
        raise ValueError(
            f"{where}: the reference {shown(unknown[0])} is not one of its methods; they are {names(found)}."
        )
    for what in ("curves", "matrices"):
        if unknown := [method for method in lists[what] if method not in found]:
            raise ValueError(f"{where}: {what} names {shown(unknown[0])}, which is not one of its methods.")
    axis = entry.get("x")
    if axis is not None:
        _check_axis(axis, chosen, where)
    cells = tuple(
        _cell(base, condition, conditions[condition] or {}, point, seed, where, methods)
        for condition in wanted
        for point in chosen
        for seed in entry["seeds"]
    )
    curves = None if entry.get("curves") is None else tuple(lists["curves"])
    return Group(
        name,
        entry["title"],
        entry.get("text", ""),
        cells,
        tuple(references),
        axis,
        curves,
        tuple(lists["matrices"]),
        _columns(entry["columns"], where) if "columns" in entry else columns,
    )


def _columns(given: Any, where: str) -> dict[str, tuple[str, ...]]:
    """The further columns of tables, checked."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{where}, columns: {shown(given)}; expected headings with lists of evaluation sets.")
    for heading, sets in (given or {}).items():
        if not isinstance(sets, list) or not sets or not all(isinstance(name, str) for name in sets):
            raise ValueError(f"{where}, columns: {heading} is {shown(sets)}; expected a list of evaluation sets.")
    return {str(heading): tuple(sets) for heading, sets in (given or {}).items()}


def _check_axis(axis: Any, chosen: list[_Point], where: str) -> None:
    _check_keys(axis, _AXIS_KEYS, {"setting"}, f"{where}, x")
    if not isinstance(axis["setting"], str):
        raise ValueError(f"{where}, x: setting is {shown(axis['setting'])}; expected a name of a grid.")
    found = [point.values[axis["setting"]] for point in chosen if axis["setting"] in point.values]
    if not found:
        raise ValueError(f"{where}: no method of it has the setting {shown(axis['setting'])} in its grid.")
    if words := [value for value in found if isinstance(value, bool) or not isinstance(value, int | float)]:
        raise ValueError(f"{where}, x: {axis['setting']!r} has the value {shown(words[0])}; expected numbers.")


def _points(name: str, entry: Mapping[str, Any]) -> Iterator[_Point]:
    axes: dict[str, list[Any]] = dict(entry.get("grid") or {})
    windows = entry.get("windows")
    if windows is not None:
        axes["window"] = windows_of(windows["blocks"], windows["size"], windows.get("stride", 1))
    for combination in product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        if windows is not None:
            first, last = values.pop("window")
            values |= {"first": first, "last": last}
        label = ", ".join(f"{key}={value}" for key, value in values.items())
        kept = {"seed": "${seed}", "folder": "${folder}", "title": "${title}", "start": "${start}"}
        filled = fill({"title": entry["title"], **_parts(entry)}, {**kept, **values})
        yield _Point(
            f"{name}[{label}]" if values else name,
            filled["title"],
            filled["callbacks"],
            filled["config"],
            values,
            entry.get("after"),
        )


def windows_of(blocks: int, size: int, stride: int = 1) -> list[tuple[int, int]]:
    """First and last block, counted from 1, of every window over the decoder blocks; the last one ends at the end.

    >>> windows_of(6, 3), windows_of(6, 4, stride=4)
    ([(1, 3), (2, 4), (3, 5), (4, 6)], [(1, 4), (3, 6)])
    """
    starts = [*range(1, blocks - size + 1, stride), blocks - size + 1]
    return [(first, first + size - 1) for first in starts]


def _check_windows(windows: Mapping[str, Any], where: str) -> None:
    _check_keys(windows, _WINDOW_KEYS, {"blocks", "size"}, f"{where}, windows")
    for key, value in windows.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{where}, windows: {key} is {shown(value)}; expected a whole number from 1.")
    if windows["size"] >= windows["blocks"]:
        raise ValueError(
            f"{where}, windows: size is {windows['size']} of {windows['blocks']} blocks; expected fewer than all, "
            "so that something is left to train."
        )


def _check_order(methods: Mapping[str, list[_Point]], path: str) -> None:
    """Every ``after`` names one method, and none comes after itself."""
    for name, points in methods.items():
        seen, after = [name], points[0].after
        while after is not None:
            where = f"{path}, method {seen[-1]!r}: after"
            if after not in methods or len(methods[after]) > 1:
                raise ValueError(
                    f"{where} is {shown(after)}; expected a method without a grid out of {names(methods)}."
                )
            if after in seen:
                raise ValueError(f"{where} is {shown(after)}, which comes after it itself.")
            seen.append(after)
            after = methods[after][0].after


def _parts(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"callbacks": entry.get("callbacks") or [], "config": entry.get("config") or {}}


def _points_of(wanted: list[str], methods: Mapping[str, list[_Point]], where: str) -> list[_Point]:
    by_name = {point.name: point for points in methods.values() for point in points}
    chosen: list[_Point] = []
    for name in wanted:
        if name not in methods and name not in by_name:
            family = methods.get(name.partition("[")[0], ())
            known = [point.name for point in family] or list(methods)
            raise ValueError(f"{where}: no method {shown(name)}; there are {names(known)}.")
        chosen += methods.get(name) or [by_name[name]]
    return chosen


def _cell(
    base: Mapping[str, Any],
    name: str,
    condition: Mapping[str, Any],
    point: _Point,
    seed: int,
    where: str,
    methods: Mapping[str, list[_Point]],
) -> Cell:
    before = (
        None if point.after is None else _cell(base, name, condition, methods[point.after][0], seed, where, methods)
    )
    config = _merged(_merged(base, condition), point.config)
    trainer = config["trainer"] = config.get("trainer") or {}
    if not isinstance(trainer, dict) or not isinstance(trainer.get("callbacks") or [], list):
        raise ValueError(
            f"{where}, condition {name!r}: trainer is {shown(trainer)}; expected a mapping, callbacks a list."
        )
    trainer["callbacks"] = [*(trainer.get("callbacks") or ()), *point.callbacks]
    try:
        start = {} if before is None else {"start": "${start}"}
        config = fill(config, {"seed": seed, "title": "${title}", "folder": "${folder}", **start})
    except ValueError as error:
        raise ValueError(f"{where}, condition {name!r}: {error}") from error
    _canonical(config, f"{where}, condition {name!r}")
    return Cell(point.name, point.title, name, seed, config, point.values, before)


def _canonical(config: Any, where: str) -> str:
    """The configuration as one text, whatever the order of its keys."""
    try:
        return json.dumps(config, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: what JSON has no form for: {cut(error, 200)}; expected texts and numbers."
        ) from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it: mappings key by key, anything else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected a mapping with the keys {sorted(needed)}, got {type(entry).__name__}.")
    if unknown := set(entry) - known:
        raise ValueError(f"{where}: unknown keys {names(sorted(map(str, unknown)))}; expected {sorted(known)}.")
    if missing := sorted(needed - set(entry)):
        raise ValueError(f"{where}: {missing} missing; expected {sorted(needed)}.")


def _check_types(entry: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    for key, kind in types.items():
        value = entry.get(key)
        if value is not None and not isinstance(value, kind):
            what = "a list" if kind is list else "a mapping"
            raise ValueError(f"{where}: {key} is {shown(value)}; expected {what}.")


def _check_names(study: Study) -> None:
    seen: dict[str, Cell] = {}
    for group in study.groups:
        for cell in group.cells:
            other = seen.setdefault(cell.key, cell)
            if other.digest != cell.digest:
                raise ValueError(f"two different runs would both be called {cell.key!r}; give one method another name.")
