"""The grid: methods, conditions, settings and seeds in YAML, each cell one configuration of `hpa-lightning fit`."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_STUDY_KEYS = {"title", "text", "base", "conditions", "methods", "groups"}
_METHOD_KEYS = {"title", "callbacks", "config", "grid"}
_GROUP_KEYS = {"title", "text", "methods", "conditions", "seeds", "reference", "x", "curves", "matrices"}
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
    """

    method: str
    title: str
    condition: str
    seed: int
    config: Mapping[str, Any] = field(compare=False)
    values: Mapping[str, Any] = field(compare=False, default_factory=dict)

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
        config = _fill(self.config, {"title": "", "folder": ""})
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]

    def config_for(self, folder: Path) -> dict[str, Any]:
        """The configuration with the cell's folder filled in."""
        return _fill(self.config, {"title": self.title, "folder": str(folder)})


@dataclass(frozen=True)
class Group:
    """Cells that are shown together.

    Args:
        name: on the command line.
        title, text: in the report.
        cells: method by method, in the order of the study file.
        reference: the method that the others are compared with; ``None`` for none.
        x: the axis of a sweep: ``setting`` (a name of the methods' grids), ``label``, ``logarithmic``.
        curves: methods in the figure of every step; chosen by the report when ``None``.
        matrices: methods whose mean score matrix is shown.
    """

    name: str
    title: str
    text: str
    cells: tuple[Cell, ...]
    reference: str | None = None
    x: Mapping[str, Any] | None = None
    curves: tuple[str, ...] | None = None
    matrices: tuple[str, ...] = ()


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
                found.setdefault(cell.digest, cell)
        return list(found.values())


def read_study(path: str | PathLike[str]) -> Study:
    """Read and expand a study file.

    Raises:
        ValueError: unknown or missing keys, a group that names an unknown method or condition, two different runs
            under one name, or a placeholder without a value.
    """
    with Path(path).open() as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from error
    _check_keys(content, _STUDY_KEYS, {"base", "methods", "groups"}, str(path))
    conditions = content.get("conditions") or {"default": {}}
    for what in ("methods", "groups", "conditions", "base"):
        if what in content and not isinstance(content[what], Mapping):
            raise ValueError(f"{path}, {what}: {content[what]!r}; expected a mapping by name.")
    methods: dict[str, list[_Point]] = {}
    for name, entry in content["methods"].items():
        where = f"{path}, method {name!r}"
        _check_keys(entry, _METHOD_KEYS, {"title"}, where)
        _check_types(entry, {"callbacks": list, "config": Mapping, "grid": Mapping}, where)
        for axis, values in (entry.get("grid") or {}).items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{where}, grid: {axis} is {values!r}; expected a list of values.")
        methods[name] = list(_points(name, entry))
        alike = {json.dumps([point.callbacks, point.config], sort_keys=True) for point in methods[name]}
        if len(alike) < len(methods[name]):
            raise ValueError(f"{where}: points of its grid are the same run; expected ${{...}} for every axis of it.")
    groups = []
    for name, entry in content["groups"].items():
        where = f"{path}, group {name!r}"
        _check_keys(entry, _GROUP_KEYS, {"title", "methods", "seeds"}, where)
        _check_types(entry, dict.fromkeys(("methods", "seeds", "conditions", "curves", "matrices"), list), where)
        for what in ("methods", "seeds", "conditions"):
            if len(set(map(str, entry.get(what) or ()))) < len(entry.get(what) or ()):
                raise ValueError(f"{where}: {what} are {entry[what]}; expected each once.")
        if not all(type(seed) is int for seed in entry["seeds"]):
            raise ValueError(f"{where}: seeds are {entry['seeds']}; expected whole numbers.")
        chosen = _points_of(entry["methods"], methods, where)
        twice = sorted({point.name for point in chosen if [other.name for other in chosen].count(point.name) > 1})
        if twice:
            raise ValueError(f"{where}: methods name {twice[0]!r} twice, once with its whole grid; expected each once.")
        wanted = entry.get("conditions") or list(conditions)
        if unknown := [condition for condition in wanted if condition not in conditions]:
            raise ValueError(f"{where}: no condition {unknown[0]!r}; there are {list(conditions)}.")
        reference = entry.get("reference")
        if reference is not None and reference not in {point.name for point in chosen}:
            others = [point.name for point in chosen]
            raise ValueError(f"{where}: the reference {reference!r} is not one of its methods; they are {others}.")
        cells = tuple(
            _cell(content["base"], condition, conditions[condition] or {}, point, seed)
            for condition in wanted
            for point in chosen
            for seed in entry["seeds"]
        )
        names = {point.name for point in chosen}
        for what in ("curves", "matrices"):
            if unknown := [method for method in entry.get(what) or () if method not in names]:
                raise ValueError(f"{where}: {what} names {unknown[0]!r}, which is not one of its methods.")
        axis = entry.get("x")
        if axis is not None:
            _check_keys(axis, _AXIS_KEYS, {"setting"}, f"{where}, x")
            if not any(axis["setting"] in point.values for point in chosen):
                raise ValueError(f"{where}: no method of it has the setting {axis['setting']!r} in its grid.")
            found = [point.values[axis["setting"]] for point in chosen if axis["setting"] in point.values]
            if words := [value for value in found if isinstance(value, bool) or not isinstance(value, int | float)]:
                raise ValueError(f"{where}, x: {axis['setting']!r} has the value {words[0]!r}; expected numbers.")
        curves = None if entry.get("curves") is None else tuple(entry["curves"])
        matrices = tuple(entry.get("matrices") or ())
        text = entry.get("text", "")
        groups.append(Group(name, entry["title"], text, cells, reference, axis, curves, matrices))
    study = Study(content.get("title", Path(path).stem), content.get("text", ""), tuple(groups))
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


def _points(name: str, entry: Mapping[str, Any]) -> Iterator[_Point]:
    axes: Mapping[str, list[Any]] = entry.get("grid") or {}
    for combination in product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        kept = {"seed": "${seed}", "folder": "${folder}", "title": "${title}"}
        filled = _fill({"title": entry["title"], **_parts(entry)}, {**kept, **values})
        yield _Point(
            f"{name}[{shown}]" if values else name, filled["title"], filled["callbacks"], filled["config"], values
        )


def _parts(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"callbacks": entry.get("callbacks") or [], "config": entry.get("config") or {}}


def _points_of(names: list[str], methods: Mapping[str, list[_Point]], where: str) -> list[_Point]:
    by_name = {point.name: point for points in methods.values() for point in points}
    chosen: list[_Point] = []
    for name in names:
        if name not in methods and name not in by_name:
            family = methods.get(name.partition("[")[0], ())
            known = [point.name for point in family] or list(methods)
            raise ValueError(f"{where}: no method {name!r}; there are {known}.")
        chosen += methods.get(name) or [by_name[name]]
    return chosen


def _cell(base: Mapping[str, Any], name: str, condition: Mapping[str, Any], point: _Point, seed: int) -> Cell:
    config = _merged(_merged(base, condition), point.config)
    trainer = config["trainer"] = config.get("trainer") or {}
    trainer["callbacks"] = [*(trainer.get("callbacks") or ()), *point.callbacks]
    config = _fill(config, {"seed": seed, "title": "${title}", "folder": "${folder}"})
    return Cell(point.name, point.title, name, seed, config, point.values)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it: mappings key by key, anything else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _fill(node: Any, values: Mapping[str, Any]) -> Any:
    """Replace ``${name}``: a string that is nothing else becomes the value, with its type.

    Raises:
        ValueError: a name without a value.
    """
    if isinstance(node, Mapping):
        return {key: _fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, values) for value in node]
    if not isinstance(node, str):
        return node
    if unknown := [name for name in _PLACEHOLDER.findall(node) if name not in values]:
        raise ValueError(f"{node!r}: nothing fills ${{{unknown[0]}}}; the names known here are {sorted(values)}.")
    whole = _PLACEHOLDER.fullmatch(node)
    return values[whole[1]] if whole else _PLACEHOLDER.sub(lambda match: str(values[match[1]]), node)


def _check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected a mapping with the keys {sorted(needed)}, got {type(entry).__name__}.")
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"{where}: unknown keys {unknown}; expected {sorted(known)}.")
    if missing := sorted(needed - set(entry)):
        raise ValueError(f"{where}: {missing} missing; expected {sorted(needed)}.")


def _check_types(entry: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    for key, kind in types.items():
        value = entry.get(key)
        if value is not None and not isinstance(value, kind):
            what = "a list" if kind is list else "a mapping"
            raise ValueError(f"{where}: {key} is {value!r}; expected {what}.")


def _check_names(study: Study) -> None:
    seen: dict[str, Cell] = {}
    for group in study.groups:
        for cell in group.cells:
            other = seen.setdefault(cell.key, cell)
            if other.digest != cell.digest:
                raise ValueError(f"two different runs would both be called {cell.key!r}; give one method another name.")
