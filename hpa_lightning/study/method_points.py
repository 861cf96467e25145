"""A method of a study file at every point of its grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from hpa_lightning.declarations import fill
from hpa_lightning.study.entry_checks import canonical, check_keys, check_texts, check_types
from hpa_lightning.values import names, shown

_METHOD_KEYS = {"title", "callbacks", "config", "grid", "windows", "after"}
_WINDOW_KEYS = {"blocks", "size", "stride"}


@dataclass(frozen=True)
class MethodPoint:
    """A method at one point of its grid."""

    name: str
    title: str
    callbacks: list[Any]
    config: dict[str, Any]
    values: dict[str, Any]
    after: str | None = None


def method_points(name: str, entry: Any, where: str) -> list[MethodPoint]:
    """The points of a method's grid, checked."""
    check_keys(entry, _METHOD_KEYS, {"title"}, where)
    check_texts(entry, ("title",), where)
    check_types(entry, {"callbacks": list, "config": Mapping, "grid": Mapping, "windows": Mapping, "after": str}, where)
    if (windows := entry.get("windows")) is not None:
        _check_windows(windows, where)
    for axis, values in (entry.get("grid") or {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}, grid: {axis} is {shown(values)}; expected a list of values.")
    try:
        points = list(_points(name, entry))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len({canonical([point.callbacks, point.config], where) for point in points}) < len(points):
        raise ValueError(f"{where}: points of its grid are the same run; expected ${{...}} for every axis of it.")
    return points


def _points(name: str, entry: Mapping[str, Any]) -> Iterator[MethodPoint]:
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
        filled = fill(_parts(entry), {**kept, **values})
        yield MethodPoint(
            f"{name}[{label}]" if values else name,
            _title(entry["title"], values),
            filled["callbacks"],
            filled["config"],
            values,
            entry.get("after"),
        )


def _title(title: str, values: Mapping[str, Any]) -> str:
    """A method's name at a point of its grid: it stands for all seeds, whose runs have folders of their own."""
    try:
        return str(fill(title, values))  # of `${p}` alone a number
    except ValueError as error:
        raise ValueError(f"title: {error}") from error


def windows_of(blocks: int, size: int, stride: int = 1) -> list[tuple[int, int]]:
    """First and last block, counted from 1, of every window over the decoder blocks; the last one ends at the end.

    >>> windows_of(6, 3), windows_of(6, 4, stride=4)
    ([(1, 3), (2, 4), (3, 5), (4, 6)], [(1, 4), (3, 6)])
    """
    starts = [*range(1, blocks - size + 1, stride), blocks - size + 1]
    return [(first, first + size - 1) for first in starts]


def _check_windows(windows: Mapping[str, Any], where: str) -> None:
    check_keys(windows, _WINDOW_KEYS, {"blocks", "size"}, f"{where}, windows")
    for key, value in windows.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{where}, windows: {key} is {shown(value)}; expected a whole number from 1.")
    if windows["size"] >= windows["blocks"]:
        raise ValueError(
            f"{where}, windows: size is {windows['size']} of {windows['blocks']} blocks; expected fewer than all, "
            "so that something is left to train."
        )


def check_order(methods: Mapping[str, list[MethodPoint]], path: str) -> None:
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
                raise ValueError(f"{where} is {shown(after)}, which itself comes after it.")
            seen.append(after)
            after = methods[after][0].after


def _parts(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"callbacks": entry.get("callbacks") or [], "config": entry.get("config") or {}}
