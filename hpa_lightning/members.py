"""What an object of the user's has to have: its members are compared with those of a ``Protocol`` before use."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import get_protocol_members

from hpa_lightning.values import nearest

_ABSENT = object()


def conforming(found: object, protocol: type) -> Any:
    """Return the object itself if it has every member of a protocol, by name, else ``None``; no property is evaluated.

    Type checkers take it for what the caller declares: ``stream: TaskStream | None = conforming(data, TaskStream)``.

    >>> from hpa_lightning.data import MLLMCollator
    >>> from hpa_lightning.data.protocols import Collator
    >>> conforming(MLLMCollator, Collator) is MLLMCollator, conforming(3, Collator)
    (True, None)
    """
    return None if missing_members(found, protocol) else found


def missing_members(found: object, protocol: type) -> list[str]:
    """Return the names of a protocol's members that an object does not have, or has as ``None``, in their order."""
    return [name for name in _names(protocol) if _static(found, name) in (_ABSENT, None)]


def require_members(found: object, protocol: type, caller: str, instead: str) -> Any:
    """Return an object; refuse one without the members of a protocol, or whose methods take other arguments.

    Args:
        found: the user's object.
        protocol: what is needed.
        caller: who needs it, with the verb: ``"TaskEvaluation asks the datamodule for"``.
        instead: what to do, in a sentence.

    Returns:
        The object, which the caller declares to be of the protocol.

    Raises:
        MisconfigurationException: every member that is missing or takes other arguments, each as it is called.
    """
    kind = "there is none" if found is None else f"{type(found).__name__} does not have"
    missing = missing_members(found, protocol)
    if missing:
        wanted = ", ".join(called(protocol, name) for name in missing)
        own = [name for name in dir(type(found)) if not name.startswith("_") and name not in missing]
        near = nearest(missing[0], own) if found is not None else ""
        reported = f"; {kind}" if found is None else f", which {kind}"
        raise MisconfigurationException(f"{caller} {wanted}{reported}{near or '.'} {instead}")
    for name in _names(protocol):
        if (refused := _refused_call(found, protocol, name)) is not None:
            raise MisconfigurationException(
                f"{caller} {called(protocol, name)}, and {type(found).__name__}.{name}{refused} cannot be called so. "
                f"{instead}"
            )
    return found


def called(protocol: type, name: str) -> str:
    """Return a member as it is used: ``name``, or ``name(argument)`` of a method."""
    member = inspect.getattr_static(protocol, name, None)  # None of one that is annotated alone
    if not inspect.isfunction(member):
        return name
    parameters = list(inspect.signature(member).parameters.values())[1:]
    return f"{name}({', '.join(f'{p.name}=...' if p.kind is p.KEYWORD_ONLY else p.name for p in parameters)})"


def _names(protocol: type) -> Iterable[str]:
    members = get_protocol_members(protocol)
    written = [
        name for base in reversed(protocol.__mro__) for name in (*vars(base), *vars(base).get("__annotations__", ()))
    ]
    return [name for name in dict.fromkeys(written) if name in members]


def _static(found: object, name: str) -> Any:
    """The member; no property is evaluated, which may need what is not there yet."""
    try:
        return inspect.getattr_static(found, name)
    except AttributeError:
        return _ABSENT if isinstance(found, type) else getattr(found, name, _ABSENT)


def _refused_call(found: object, protocol: type, name: str) -> str | None:
    """The signature of a method that does not take the protocol's arguments; ``None`` if it does, or cannot be told."""
    member = inspect.getattr_static(protocol, name, None)
    if not inspect.isfunction(member):
        return None
    parameters = list(inspect.signature(member).parameters.values())[1:]
    try:
        signature = inspect.signature(getattr(found, name))
    except (TypeError, ValueError):  # not a function of Python's
        return None if callable(getattr(found, name)) else ", which is no method,"
    try:
        signature.bind(
            *(p for p in parameters if p.kind is not p.KEYWORD_ONLY),
            **{p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY},
        )
    except TypeError:
        return str(signature)
    return None
