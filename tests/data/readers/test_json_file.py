"""JSON files read a few characters at a time, more of them than may be open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.record_files import lines, row

from hpa_lightning.data import open_records
from hpa_lightning.data.readers import json_file, json_text
from hpa_lightning.data.readers.json_file import JsonFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(lines([row(index) for index in range(20)]))
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_lists_are_what_json_makes_of_them(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whole lists and torn ones, read a few characters at a time: the same values, or the same complaint."""
    chunk = data.draw(st.integers(1, 40))
    values = data.draw(st.lists(JSON, max_size=5))
    text = "[" + json.dumps(values, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False)[1:]
    if data.draw(st.booleans()):
        start = data.draw(st.integers(1, len(text)))
        text = text[:start] + data.draw(st.sampled_from(["", ",", "]", '"', "1", " x"])) + text[start + 1 :]
    path = tmp_path_factory.mktemp("lists") / "t.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_CHUNK", chunk)
        file = JsonFile(path)
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            with pytest.raises(ValueError, match=r"t\.json"):
                list(file.rows())
        else:
            assert [value for _, value in file.rows()] == expected
            assert [file[index] for index in reversed(range(len(file)))] == expected[::-1]


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_MOST_OPEN", 3)
    files = []
    for index in range(10):
        (tmp_path / f"{index}.jsonl").write_text(lines([row(index), row(index + 100)]))
        files.append(open_records(tmp_path / f"{index}.jsonl"))
    assert [records[1].id for records in files] == [str(index + 100) for index in range(10)]
    assert len(json_file._OPEN) <= 3
