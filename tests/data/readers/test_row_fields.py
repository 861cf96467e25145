"""Keys and marks that no reader takes are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chat_files import MESSAGES, YES, contents, read, text
from support.tiny_mllms import evaluation_records

from hpa_lightning.data import CVITDataModule, Task
from hpa_lightning.data.checking import check_stream, summary
from hpa_lightning.data.readers import DataWarning


def test_unknown_keys_are_told_once_for_a_file_with_counts(tmp_path: Path) -> None:
    rows = [{"messages": MESSAGES[:2], "tools": "[]", "source": None, "extra": []}] * 3
    rows += [{"messages": [{**MESSAGES[0], "name": "Ann"}, {**MESSAGES[1], "name": "Bob"}], "model": "x"}] * 2
    with pytest.warns(DataWarning) as told:
        read(tmp_path, *rows)
    (warning,) = told
    assert str(warning.message) == (
        "t.json: unknown key 'tools' in 3 of 5 records, unknown key 'messages[].name' in 2 of 5 records, "
        "unknown key 'model' in 2 of 5 records; not read."
    )
    (part, *_) = parts = check_stream(CVITDataModule([Task("a", str(tmp_path / "t.json"), evaluation_records(2))]))
    assert not part.problems and "unknown key 'tools' in 3 of 5 records" in summary(parts)


def test_marks_of_media_without_media_are_told(tmp_path: Path) -> None:
    """A page's source may hold them; what is no path between two tags is text, and so are answers."""
    page = '<video controls>\n<source src="a.mp4">\n</video> <img src="a.png"> <img></img> a <b>bold</b> word'
    rows = [{"messages": [{"role": "user", "content": question}, YES]} for question in ("<video>What?", page, "a")]
    rows.append({"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "<audio>"}]})
    with pytest.warns(DataWarning) as told:
        records = read(tmp_path, *rows)
    assert [str(item.message) for item in told] == ["t.json: mark <video> in the text in 1 of 4 records; not read."]
    assert contents(records[1])[0][1] == [text(page)]
