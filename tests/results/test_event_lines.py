"""Events as lines of a file and back: types, keys that are missing, keys of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from hpa_lightning.results import event_lines
from hpa_lightning.results.event_lines import Event, null_field


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kind of somebody else's callback; it stays out of the known ones."""
    monkeypatch.setattr(event_lines, "KINDS", dict(event_lines.KINDS))

    @dataclass(frozen=True, kw_only=True)
    class Sample(Event):
        event: ClassVar[str] = "sample"

        step: int
        share: float
        names: tuple[str, ...] = ()
        data: Mapping[str, Any] | None = None
        judge: str | None = null_field()
        met: bool | None = None

    Sample.__annotations__ = {"event": ClassVar[str], "step": int, "share": float, "names": tuple[str, ...]} | {
        "data": Mapping[str, Any] | None,
        "judge": str | None,
        "met": bool | None,
    }
    return Sample


def test_a_line_has_what_must_stand_there_and_no_more(kind: Any) -> None:
    line = {"event": "sample", "step": 1, "share": 1, "names": ["a"], "judge": None, "theirs": [1]}
    event = kind.from_record(line)
    assert event.names == ("a",) and event.extra == {"theirs": [1]} and event.met is None
    assert event.record() == line
    assert kind.from_record({"event": "sample", "step": 1, "share": 0.5}).record() == {
        "event": "sample",
        "step": 1,
        "share": 0.5,
        "names": [],
        "judge": None,
    }


@pytest.mark.parametrize(
    "change", [{"step": True}, {"step": 1.5}, {"share": "1"}, {"names": "ab"}, {"names": [1]}, {"met": 1}, {"judge": 3}]
)
def test_a_value_of_another_type_is_named_with_its_line(kind: Any, change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"line 7: '{name}' of a 'sample' event is "):
        kind.from_record({"event": "sample", "step": 1, "share": 0.5, **change}, "line 7")


def test_keys_that_are_missing_are_told_together(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"line 7: the 'sample' event lacks \['step', 'share'\]"):
        kind.from_record({"event": "sample"}, "line 7")
