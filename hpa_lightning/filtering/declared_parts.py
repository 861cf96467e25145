"""Parts of a filter that are declared in YAML, by class and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import isclass
from typing import Any

from jsonargparse import ArgumentParser

from hpa_lightning.declarations import instantiate
from hpa_lightning.filtering.assessment import HarmFilter
from hpa_lightning.values import cut, names, nearest, shown

_EXPECTED = "expected {class_path: ..., init_args: {...}}"


def declared_parts(content: Mapping[str, Any], where: str) -> dict[str, HarmFilter]:
    """Make the parts that are declared: name -> ``{"class_path": ..., "init_args": {...}}``.

    Args:
        content: what is in the YAML. A class of this package needs no path before its name; one of your own is
            named by its module, or, without arguments, a function.
        where: for messages.

    Raises:
        ValueError: named by ``where`` and part: no such class, an argument that it does not have, of another type or
            value.
    """
    return {str(name): _part(declared, f"{where}, part {str(name)!r}") for name, declared in content.items()}


def _part(declared: Any, where: str) -> HarmFilter:
    declared = {"class_path": declared} if isinstance(declared, str) else declared
    if not isinstance(declared, Mapping) or not isinstance(declared.get("class_path"), str):
        raise ValueError(f"{where} is {shown(declared)}; {_EXPECTED}.")
    if unknown := sorted(set(declared) - {"class_path", "init_args"}):
        raise ValueError(f"{where} has the unknown keys {names(unknown)}; {_EXPECTED}.")
    found = _imported(declared["class_path"], where)
    arguments = declared.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: init_args is {shown(arguments)}; expected name: value.")
    if isclass(found):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(found, "part")
        found = instantiate(parser, {"part": dict(arguments)}, where).part
    elif arguments:
        raise ValueError(f"{where}: {declared['class_path']} is not a class and takes no init_args.")
    if not isinstance(found, HarmFilter):
        raise ValueError(
            f"{where}: {type(found).__name__} cannot be called with records, so it cannot be part of a filter."
        )
    return found


def _imported(path: str, where: str) -> Any:
    module, _, name = path.rpartition(".")
    package = import_module(__package__ or "")  # which imports this module: by name, when it is needed
    try:
        owner = import_module(module) if module else package
    except ImportError as error:
        raise ValueError(f"{where}: the module of {path!r} cannot be imported: {cut(error, 300)}.") from error
    if not hasattr(owner, name):
        known = package.__all__ if owner is package else dir(owner)
        parts = [item for item in package.__all__ if _is_part(item, getattr(package, item))]
        told = f"; the parts here are {', '.join(parts)}" if owner is package else ""
        raise ValueError(f"{where}: there is no {path!r}{nearest(name, known) or told}.")
    return getattr(owner, name)


def _is_part(name: str, found: Any) -> bool:
    return isclass(found) and name != "HarmFilter" and "__call__" in vars(found)
