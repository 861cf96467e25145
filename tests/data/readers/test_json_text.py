"""One JSON value after another, read a few characters at a time."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from hpa_lightning.data.readers import json_text
from hpa_lightning.data.readers.json_text import JsonText

VALUES: list[Any] = [
    1,
    -1.5e30,
    'grün \U0001f600 \\ " ,]',
    [1, [2, {"a": None}]],
    {"b": [True, ""]},
    12345678901234567890,
]


def read(content: bytes, place: int = 0) -> tuple[list[Any], list[bytes]]:
    """Values of a list, and the bytes of each."""
    file = io.BytesIO(content)
    file.seek(place)
    text = JsonText(file, "a.json", place)
    text.take("[")
    values, parts = [], []
    while text.next() != "]":
        if values:
            text.take(",")
            text.next()
        start = text.place
        values.append(text.value())
        parts.append(text.last)
        assert content[start : text.place] == text.last
    text.take("]")
    assert text.next() == ""
    return values, parts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_are_those_of_json_wherever_the_text_is_cut(
    size: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "_CHUNK", size)
    content = json.dumps(VALUES, indent=indent, ensure_ascii=False).encode()
    values, parts = read(content)
    assert values == VALUES and [json.loads(part) for part in parts] == VALUES
    assert read(b"\xef\xbb\xbf" + content, 3)[0] == VALUES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["a",\n\n"b" "c"]', "a.json: broken JSON at line 3: Expecting ',' delimiter"),
        (b'["a",\n tru]', "a.json: broken JSON at line 2: Expecting value"),
        (b'["a', "a.json: broken JSON at line 1: Unterminated string"),
        (b'["a", "\xff"]', r"a.json is not UTF-8 \(byte 7\)"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_is_broken_is_told_with_its_line(
    content: bytes, message: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "_CHUNK", size)
    with pytest.raises(ValueError, match=message):
        read(content)
