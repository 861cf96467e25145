"""Text and JSON files: one error that names the file, whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpa_lightning.parsing import json_object, parse_json, read_text


def test_a_byte_order_mark_is_no_text_and_other_encodings_are_named_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn")
    assert read_text(path) == "grün"
    path.write_bytes("grün".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 \(byte 2\)"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1\n"b": 2}', "where: broken JSON at line 3: Expecting ',' delimiter, as said."),
        ("[" * 100_000, "where: broken JSON: it is nested too deeply"),
        (b"[\xff\xff\xff]", "where: broken JSON: 'utf-8' codec"),
        ("1" * 5000, "where: broken JSON: Exceeds the limit"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "where: an object has the key 'b' twice"),
    ],
)
def test_what_is_no_json_is_one_short_error(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "where", ", as said")
    assert len(str(caught.value)) < 250


def test_a_line_that_is_named_already_is_not_named_again() -> None:
    with pytest.raises(ValueError, match=r"^a\.jsonl \(line 7\): broken JSON: Expecting value\.$"):
        parse_json("", "a.jsonl (line 7)")


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1]}')
    assert json_object(path) == {"a": [1]}
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json holds a list; expected an object"):
        json_object(path)
    with pytest.raises(FileNotFoundError):
        json_object(tmp_path / "none.json")
