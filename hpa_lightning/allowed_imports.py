"""Which packages the values of a file may name: jsonargparse imports what a value names, and that runs its code.

A value can name a class in more ways than a file shows: under ``class_path``, as a plain text where a class is
expected, in a list, in another file that it names. So the names are looked at where jsonargparse imports them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _actions, _typehints

from hpa_lightning.values import cut, shown

LIMIT = "HPA_LIGHTNING_IMPORTS"
"""The environment variable by which a study tells its fits the packages that may be named, separated by commas."""

_RESOLVING: tuple[Any, ...] = (_typehints, _actions)
"""The modules of jsonargparse that import what values name, each with ``import_object``."""

_limits: list[tuple[frozenset[str], str]] = []


class ImportRefusedError(ImportError, ValueError):
    """A value names something of a package that it may not name; jsonargparse reports both of its bases."""


@contextmanager
def imports_limited(packages: Collection[str], where: str) -> Iterator[None]:
    """Refuse in the block whatever jsonargparse would import for a value out of other packages.

    Blocks within one another count together: an inner one allows nothing that an outer one refuses.

    Args:
        packages: names of the packages that may be named.
        where: what names them, for messages.

    Raises:
        ImportRefusedError: inside jsonargparse, which makes a parsing error of it.
    """
    _watch()
    _limits.append((frozenset(packages), where))
    try:
        yield
    finally:
        _limits.pop()


@contextmanager
def imports_limited_by_study() -> Iterator[None]:
    """The limit that a study has set for this process, if any; see :data:`LIMIT`."""
    given = os.environ.get(LIMIT)
    if given is None:
        yield
        return
    with imports_limited(given.split(","), "the study"):
        yield


def refusal(name: str, packages: Collection[str], where: str) -> str:
    """Say why a class is not imported, and what to do."""
    root = name.partition(".")[0]
    return (
        f"{where} names the class {shown(name)}, and to import the package {shown(root)} would run its code; "
        f"expected classes of {', '.join(sorted(packages))}. If you trust it, allow the package with imports "
        f"(on the command line: --imports {cut(root, 60)})."
    )


def _watch() -> None:
    for module in _RESOLVING:
        found = module.import_object  # an AttributeError where a version of jsonargparse does it in another way
        if not getattr(found, "limited", False):
            module.import_object = _limited(found)


def _limited(import_object: Callable[..., Any]) -> Callable[..., Any]:
    def resolve(name: Any, *arguments: Any, **settings: Any) -> Any:
        if isinstance(name, str) and name != "jsonargparse.ArgumentParser":  # which jsonargparse itself asks for
            for packages, where in _limits:
                if name.partition(".")[0] not in packages:
                    raise ImportRefusedError(refusal(name, packages, where))
        return import_object(name, *arguments, **settings)

    resolve.limited = True  # type: ignore[attr-defined]
    return resolve
