"""Objects of the user's against a protocol: what is missing, and what cannot be called so."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hpa_lightning.members import called, conforming, missing_members, require_members


class Reader(Protocol):
    size: int

    def read(self, name: str, /, *, limit: int | None) -> list[str]: ...

    def close(self) -> None: ...


class Good:
    size = 3

    def read(self, name: str, limit: int | None = None) -> list[str]:
        return [name]

    def close(self) -> None: ...


class NotYet(Good):
    @property
    def size(self) -> int:  # type: ignore[override]
        raise RuntimeError("read before the setup")


def test_an_object_with_every_member_is_taken_and_no_property_is_evaluated() -> None:
    for found in (Good(), NotYet()):
        assert conforming(found, Reader) is found
        assert require_members(found, Reader, "A test asks for", "Add it.") is found


def test_members_that_are_missing_or_none_are_named_in_their_order() -> None:
    class Bare:
        size = None

        def clse(self) -> None: ...

    assert missing_members(Bare(), Reader) == ["read", "close", "size"]
    assert conforming(Bare(), Reader) is None
    with pytest.raises(
        MisconfigurationException,
        match=r"^A test asks for read\(name, limit=\.\.\.\), close\(\), size, which Bare does not have.*\. Add it\.$",
    ):
        require_members(Bare(), Reader, "A test asks for", "Add it.")
    with pytest.raises(MisconfigurationException, match=r"close\(\), size; there is none\. Add it\."):
        require_members(None, Reader, "A test asks for", "Add it.")


def test_a_name_that_is_nearly_right_is_told() -> None:
    class Misspelt(Good):
        size = 1
        close = None  # type: ignore[assignment]

        def closed(self) -> None: ...

    with pytest.raises(
        MisconfigurationException, match=r"close\(\), which Misspelt does not have; did you mean 'closed'\? Add it\."
    ):
        require_members(Misspelt(), Reader, "A test asks for", "Add it.")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda self: [], r"Other\.read\(\) cannot be called so"),
        (lambda self, name: [], r"Other\.read\(name\) cannot be called so"),
        (7, r"Other\.read, which is no method, cannot be called so"),
    ],
    ids=["no arguments", "no limit", "no method"],
)
def test_a_method_of_other_arguments_is_refused(read: Any, message: str) -> None:
    other = type("Other", (Good,), {"read": read})()
    with pytest.raises(MisconfigurationException, match=message):
        require_members(other, Reader, "A test asks for", "Add it.")


def test_members_are_written_as_they_are_called() -> None:
    assert [called(Reader, name) for name in ("size", "read", "close")] == ["size", "read(name, limit=...)", "close()"]
