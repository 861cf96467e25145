"""Values in messages: short whatever they are, and the nearest name."""

from __future__ import annotations

from typing import Any

import pytest

from hpa_lightning.values import cut, names, nearest, shown


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no representation")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, b"x" * 10**7, 10**5000, nested(10_000), {str(i): "y" * 1000 for i in range(1000)}, Silent()],
    ids=["text", "bytes", "number", "nested", "object", "silent"],
)
def test_a_value_of_any_size_is_shown_in_one_line(value: Any) -> None:
    assert 0 < len(shown(value)) < 310


def test_small_values_are_shown_whole() -> None:
    for value in ("it's", 3.5, ["a", {"b": None}], ()):
        assert shown(value) == repr(value)


def test_lists_of_names_and_texts_have_an_end() -> None:
    assert names(range(20)) == str([str(i) for i in range(20)])
    assert names(range(23)).endswith("'19'] and 3 more")
    assert cut("x" * 12, 10) == "x" * 10 + "..." and cut("x" * 10, 10) == "x" * 10


def test_the_nearest_name_whatever_the_case() -> None:
    known = ["learning_rate", "steps", "Steps_between"]
    assert nearest("LEARNINGRATE", known) == "; did you mean 'learning_rate'?"
    assert nearest("stepsbetween", known) == "; did you mean 'Steps_between'?"
    assert nearest("damping", known) == "" == nearest("steps", [])
