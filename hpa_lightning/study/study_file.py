"""Study files: read, checked and expanded into cells."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import fill, load_yaml
from hpa_lightning.parsing import read_text
from hpa_lightning.report.run_tables import check_heading
from hpa_lightning.study.entry_checks import canonical, check_filled, check_keys, check_texts, check_types
from hpa_lightning.study.grid import Cell, Group, Study
from hpa_lightning.study.method_points import MethodPoint, check_order, method_points
from hpa_lightning.values import names, shown

_STUDY_KEYS = {"title", "text", "base", "columns", "conditions", "methods", "groups"}
_GROUP_KEYS = {
    "title",
    "text",
    "methods",
    "conditions",
    "seeds",
    "reference",
    "x",
    "curves",
    "matrices",
    "columns",
    "costs",
}
_AXIS_KEYS = {"setting", "label", "logarithmic"}
_NO_FOLDER = re.compile(r"^\.|^\s|\s$|[/\\\x00-\x1f]|^\w:")


def read_study(path: str | PathLike[str]) -> Study:
    """Read and expand a study file.

    Raises:
        ValueError: unknown or missing keys, a group that names an unknown method or condition, two different runs
            under one name, one run under two seeds, or a placeholder without a value.
    """
    return expand_study(load_yaml(read_text(path), str(path)), path)


def expand_study(content: Any, path: str | PathLike[str]) -> Study:
    """Expand what is in a study file; ``path`` is its name in errors.

    Raises:
        ValueError: as :func:`read_study`.
    """
    check_keys(content, _STUDY_KEYS, {"base", "methods", "groups"}, str(path))
    check_texts(content, ("title", "text"), str(path))
    check_filled(content, ("title",), str(path))
    for what in ("methods", "groups", "conditions", "base"):
        if what in content and not isinstance(content[what], Mapping):
            raise ValueError(f"{path}, {what}: {shown(content[what])}; expected a mapping by name.")
        for name in content.get(what) or () if what != "base" else ():
            # The name of a condition is that of a folder in the store, and must not lead out of it.
            if not isinstance(name, str) or _NO_FOLDER.search(name) or not re.search(r"\w", name):
                raise ValueError(
                    f"{path}, {what}: the name {shown(name)}; expected a text without slashes, with a letter or a "
                    "digit, since folders are called so."
                )
    conditions = content.get("conditions") or {"default": {}}
    for name, entry in conditions.items():
        if entry is not None and not isinstance(entry, Mapping):
            raise ValueError(f"{path}, condition {name!r} is {shown(entry)}; expected a mapping.")
    methods = {
        name: method_points(name, entry, f"{path}, method {name!r}") for name, entry in content["methods"].items()
    }
    check_order(methods, str(path))
    columns = _columns(content.get("columns"), str(path))
    groups = tuple(
        _group(name, entry, content["base"], conditions, methods, columns, f"{path}, group {name!r}")
        for name, entry in content["groups"].items()
    )
    study = Study(content.get("title", Path(path).stem), content.get("text", ""), groups)
    _check_names(study)
    _check_seeds(study, str(path))
    return study


def _group(
    name: str,
    entry: Any,
    base: Mapping[str, Any],
    conditions: Mapping[str, Any],
    methods: Mapping[str, list[MethodPoint]],
    columns: tuple[dict[str, tuple[str, ...]], frozenset[str]],
    where: str,
) -> Group:
    check_keys(entry, _GROUP_KEYS, {"title", "methods", "seeds"}, where)
    check_texts(entry, ("title", "text"), where)
    check_filled(entry, ("title",), where)
    check_types(entry, dict.fromkeys(("methods", "seeds", "conditions", "curves", "matrices"), list), where)
    check_types(entry, {"costs": bool}, where)
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
        *(_columns(entry["columns"], where) if "columns" in entry else columns),
        costs=entry.get("costs", False),
    )


def _columns(given: Any, where: str) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """The further columns of tables, checked, and the headings of the optional ones."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{where}, columns: {shown(given)}; expected headings with lists of evaluation sets.")
    columns, optional = dict(given or {}), set()
    check_filled({"columns": list(map(str, columns))}, ("columns",), where)
    for heading, entry in columns.items():
        check_heading(str(heading), f"{where}, columns: ")
        sets = entry
        if isinstance(entry, Mapping):
            check_keys(entry, {"sets", "optional"}, {"sets"}, f"{where}, columns: {heading}")
            sets = columns[heading] = entry["sets"]
            if not isinstance(entry.get("optional", False), bool):
                raise ValueError(
                    f"{where}, columns: {heading}: optional is {shown(entry['optional'])}; expected true or false."
                )
            optional.update([str(heading)] if entry.get("optional") else [])
        if not isinstance(sets, list) or not sets or not all(isinstance(name, str) for name in sets):
            raise ValueError(f"{where}, columns: {heading} is {shown(sets)}; expected a list of evaluation sets.")
    return {str(heading): tuple(sets) for heading, sets in columns.items()}, frozenset(optional)


def _check_axis(axis: Any, chosen: list[MethodPoint], where: str) -> None:
    check_keys(axis, _AXIS_KEYS, {"setting"}, f"{where}, x")
    check_texts(axis, ("setting", "label"), f"{where}, x")
    check_filled(axis, ("label",), f"{where}, x")
    check_types(axis, {"logarithmic": bool}, f"{where}, x")
    found = [point.values[axis["setting"]] for point in chosen if axis["setting"] in point.values]
    if not found:
        raise ValueError(f"{where}: no method of it has the setting {shown(axis['setting'])} in its grid.")
    if words := [value for value in found if isinstance(value, bool) or not isinstance(value, int | float)]:
        raise ValueError(f"{where}, x: {axis['setting']!r} has the value {shown(words[0])}; expected numbers.")
    if axis.get("logarithmic") and (low := min(found)) <= 0:
        raise ValueError(
            f"{where}, x: {axis['setting']!r} has the value {low}, which a logarithmic axis cannot show; expected "
            "positive numbers, or logarithmic: false."
        )


def _points_of(wanted: list[str], methods: Mapping[str, list[MethodPoint]], where: str) -> list[MethodPoint]:
    by_name = {point.name: point for points in methods.values() for point in points}
    chosen: list[MethodPoint] = []
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
    point: MethodPoint,
    seed: int,
    where: str,
    methods: Mapping[str, list[MethodPoint]],
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
    canonical(config, f"{where}, condition {name!r}")
    return Cell(point.name, point.title, name, seed, config, point.values, before)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it: mappings key by key, anything else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _check_names(study: Study) -> None:
    seen: dict[str, Cell] = {}
    for group in study.groups:
        for cell in group.cells:
            other = seen.setdefault(cell.key, cell)
            if other.digest != cell.digest:
                raise ValueError(f"two different runs would both be called {cell.key!r}; give one method another name.")


def _check_seeds(study: Study, path: str) -> None:
    """Check that every seed is another run: one that counts several times is no mean over seeds."""
    seen: dict[tuple[str, str, str], Cell] = {}
    for group in study.groups:
        for cell in group.cells:
            other = seen.setdefault((cell.method, cell.condition, cell.digest), cell)
            if other.seed != cell.seed:
                raise ValueError(
                    f"{path}, group {group.name!r}: the seeds {other.seed} and {cell.seed} of {cell.method!r} in "
                    f"{cell.condition!r} are the same run, since nothing in its configuration depends on the seed; "
                    "write ${seed} where it has to stand (seed_everything, the data's seed), or name one seed."
                )
