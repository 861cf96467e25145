"""The events of a run as a checkpoint keeps them, to be written again on a resume: earlier ones packed."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_TOGETHER = 512
"""Events that are packed together. A 7B model has some 200 of a task, with much the same text."""


class EventLog:
    """Events in their order. All but the last few are compressed JSON: many layers say nearly the same.

    >>> log = EventLog([{"event": "time", "seconds": 1.5}])
    >>> log.append({"event": "score", "score": 0.25})
    >>> [event["event"] for event in EventLog.from_state(log.state())]
    ['time', 'score']
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self._packed: list[str] = []
        self._last: list[dict[str, Any]] = []
        for event in events:
            self.append(event)

    def append(self, event: Mapping[str, Any]) -> None:
        """Keep an event: texts, numbers and lists or arrays of them."""
        self._last.append(dict(event))
        if len(self._last) == _TOGETHER:
            text = json.dumps(self._last, default=lambda value: value.tolist())
            # Text, since not every version of torch loads bytes with weights_only.
            self._packed.append(base64.b85encode(zlib.compress(text.encode(), 9)).decode())
            self._last = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for packed in self._packed:
            yield from json.loads(zlib.decompress(base64.b85decode(packed)))
        yield from self._last

    def state(self) -> dict[str, list[Any]]:
        """Return what a checkpoint holds."""
        return {"packed_events": list(self._packed), "events": list(self._last)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EventLog:
        """Return the log of a checkpoint; older ones hold all events as they are."""
        log = cls()
        log._packed = list(state.get("packed_events", ()))
        for event in state["events"]:
            log.append(event)
        return log
