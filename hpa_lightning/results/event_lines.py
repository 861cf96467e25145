"""What all events of a result file share: how one becomes a line of the file, and a line an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from hpa_lightning.values import shown

KINDS: dict[str, type[Event]] = {}
"""The name of an event -> its class."""

_Any = TypeVar("_Any", bound="Event")


def null_field() -> Any:
    """A field of every new line, null where there is nothing to say; older files may lack it."""
    return field(default=None, metadata={"always": True})


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events share.

    Attributes:
        event: the name of the kind, in the file the key ``"event"``.
        extra: other keys of the line.
    """

    event: ClassVar[str] = ""

    extra: Mapping[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.event:  # others are what several kinds share
            KINDS.setdefault(cls.event, cls)

    def record(self) -> dict[str, Any]:
        """The event as a line of the file holds it; optional fields without a value are left out.

        >>> from hpa_lightning.results.events import TimeEvent
        >>> TimeEvent(step=0, phase="train", seconds=2.5, by="Mine", number=0).record()
        {'event': 'time', 'step': 0, 'phase': 'train', 'seconds': 2.5, 'by': 'Mine', 'number': 0}
        """
        found: dict[str, Any] = {"event": self.event}
        kind: Any = type(self)
        for name, (_, always, _) in _fields(kind).items():
            value = getattr(self, name)
            if always or value is not None:
                found[name] = list(value) if isinstance(value, tuple) else value
        return {**found, **self.extra}

    @classmethod
    def from_record(cls: type[_Any], record: Mapping[str, Any], where: str = "the event") -> _Any:
        """The event that a line holds.

        Raises:
            ValueError: named by ``where``: a key that is missing, or has a value of another type.
        """
        values: dict[str, Any] = {"extra": {key: value for key, value in record.items() if key != "event"}}
        missing = []
        kind: Any = cls
        for name, (hint, _, needed) in _fields(kind).items():
            if name in record:
                value = values["extra"].pop(name)
                if not _fits(value, hint):
                    raise ValueError(f"{where}: {name!r} of a {cls.event!r} event is {shown(value)}.")
                values[name] = tuple(value) if isinstance(value, list) else value
            elif needed:
                missing.append(name)
        if missing:
            raise ValueError(f"{where}: the {cls.event!r} event lacks {missing}.")
        return cls(**values)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool, bool]]:
    """Name -> its type, whether every new line has it, and whether every line must have it."""
    hints = get_type_hints(kind)
    return {
        item.name: (
            hints[item.name],
            item.default is not None or item.metadata.get("always", False),
            item.default is MISSING,
        )
        for item in fields(kind)
        if item.name != "extra"
    }


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file is of a field's type: a list for a tuple, an integer for a float."""
    if isinstance(value, bool):
        return hint is bool or bool in get_args(hint)
    origin = get_origin(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is not None:
        return any(_fits(value, part) for part in get_args(hint))
    if hint is Any:
        return True
    return isinstance(value, int | float if hint is float else NoneType if hint is None else hint)
