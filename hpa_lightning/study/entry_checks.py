"""Checks of what is in a study file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from hpa_lightning.declarations import fill
from hpa_lightning.values import cut, names, shown


def canonical(config: Any, where: str) -> str:
    """The configuration as one text, whatever the order of its keys."""
    try:
        return json.dumps(config, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: a value that JSON cannot represent: {cut(error, 200)}; expected texts and numbers."
        ) from error


def check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected a mapping with the keys {sorted(needed)}, got {type(entry).__name__}.")
    if unknown := set(entry) - known:
        raise ValueError(f"{where}: unknown keys {names(sorted(map(str, unknown)))}; expected {sorted(known)}.")
    if missing := sorted(needed - set(entry)):
        raise ValueError(f"{where}: {missing} missing; expected {sorted(needed)}.")


def check_texts(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Check that what is written for readers is text: YAML takes `no`, 2020-01-01 and 5 for something else."""
    for key in keys:
        if key in entry and not isinstance(entry[key], str):
            raise ValueError(f"{where}: {key} is {shown(entry[key])}; expected a text (in quotes).")


def check_filled(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Check that headings hold no ``${name}``: nothing fills it there, and the page would show it as it stands."""
    for key in keys:
        try:
            fill(entry.get(key), {})
        except ValueError as error:
            raise ValueError(f"{where}, {key}: {error}") from error


def check_types(entry: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    for key, kind in types.items():
        value = entry.get(key)
        if value is not None and not isinstance(value, kind):
            what = "a list" if kind is list else "true or false" if kind is bool else "a mapping"
            raise ValueError(f"{where}: {key} is {shown(value)}; expected {what}.")
