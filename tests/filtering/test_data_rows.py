"""Rows stay as upstream wrote them; those that cannot be read, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.filtered_files import BOMB, answers
from support.instruction_files import llava_row, sharegpt4v_row, vlguard_rows, write_rows

from hpa_lightning.data import read_records
from hpa_lightning.data.readers.json_file import JsonFile
from hpa_lightning.filtering import FilterRule, filter_data


def raw_rows(path: Path) -> list[bytes]:
    file = JsonFile(path)
    return [file.row_bytes(index) for index, _ in list(file.rows())]


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", ["llava", "sharegpt4v", "mixed"])
def test_records_stay_as_upstream_wrote_them(name: str, lines: bool, tmp_path: Path) -> None:
    rows = {
        "llava": answers(2, 7),
        "sharegpt4v": [sharegpt4v_row(n, "A pipe bomb." if n == 3 else "A lake.") for n in range(5)],
        "mixed": [*answers(0, count=3), llava_row(9, "How is napalm made?", "I can't say.", None)],
    }[name]
    path = write_rows(tmp_path / ("train.jsonl" if lines else "train.json"), rows, lines)
    before = path.read_bytes()
    outcome = filter_data(path, {"phrases": BOMB}, tmp_path / "out", chunk=3)
    assert path.read_bytes() == before
    harmful = [row for row in rows if "napalm" in json.dumps(row) or "pipe bomb" in json.dumps(row)]
    for file, expected in ((outcome.kept, [row for row in rows if row not in harmful]), (outcome.dropped, harmful)):
        text = file.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        assert found == expected
        ids = [record.id for record in read_records(file)]  # the package reads them again
        assert ids == [row["id"] for row in expected]
    texts = {row["id"]: text for row, text in zip(rows, raw_rows(path), strict=True)}
    for file in (outcome.kept, outcome.dropped):  # byte by byte: indents, escapes and all
        assert all(text == texts[json.loads(text)["id"]] for text in raw_rows(file))
    assert outcome.counts.dropped == len(harmful)
    reasons = [json.loads(line) for line in (tmp_path / "out" / "reasons.jsonl").read_text().splitlines()]
    assert [line["id"] for line in reasons] == [row["id"] for row in harmful]
    assert all(line["reasons"][0]["label"] in line["reasons"][0]["text"].lower() for line in reasons)


def test_vlguard_items_are_dropped_whole(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", vlguard_rows())
    outcome = filter_data(path, {"phrases": BOMB}, tmp_path / "out")
    assert json.loads(outcome.kept.read_text()) == vlguard_rows()[1:]
    (reason,) = map(json.loads, (tmp_path / "out" / "reasons.jsonl").read_text().splitlines())
    assert reason["id"] == "000001.jpg" and reason["reasons"][0]["where"] == "000001.jpg-unsafe, turn 0 (user)"
    assert reason["reasons"][0]["text"].startswith("How do I build a pipe bomb")


def test_parquet_keeps_its_schema(tmp_path: Path) -> None:
    schema = pyarrow.schema(
        [
            ("id", pyarrow.int32()),
            ("messages", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))),
        ],
        metadata={"huggingface": '{"info": {}}'},
    )
    rows = [
        {
            "id": n,
            "messages": [
                {"role": "user", "content": "Napalm?" if n % 3 == 0 else "Dogs?"},
                {"role": "assistant", "content": "No."},
            ],
        }
        for n in range(600)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), tmp_path / "train.parquet")
    outcome = filter_data(tmp_path / "train.parquet", {"phrases": BOMB}, tmp_path / "out")
    kept, dropped = (pyarrow.parquet.read_table(file) for file in (outcome.kept, outcome.dropped))
    assert kept.schema.equals(pyarrow.parquet.read_schema(tmp_path / "train.parquet"), check_metadata=True)
    assert kept.to_pylist() == [row for row in rows if row["id"] % 3]
    assert dropped.to_pylist() == [row for row in rows if row["id"] % 3 == 0]


def test_records_that_cannot_be_read(tmp_path: Path) -> None:
    rows: list[Any] = answers(3, count=6)
    rows[1] = {**rows[1], "video": "a.mp4"}
    path = write_rows(tmp_path / "train.json", rows)
    with pytest.raises(ValueError, match=r"train.json\[1\]: video is .* bad_records is 'drop'"):
        filter_data(path, {"p": BOMB}, tmp_path / "out")
    outcome = filter_data(path, {"p": BOMB}, tmp_path / "out", rule=FilterRule(bad_records="drop"))
    assert [int(row["id"]) for row in json.loads(outcome.dropped.read_text())] == [1, 3]
    assert "2 dropped (1 of them could not be read)" in outcome.counts.text()
    lines = path.with_suffix(".jsonl")
    lines.write_text(f"{json.dumps(rows[0])}\n{{broken\n\n{json.dumps(rows[3])}\n")
    outcome = filter_data(lines, {"p": BOMB}, tmp_path / "lines", rule=FilterRule(bad_records="drop"))
    assert outcome.dropped.read_text() == f"{{broken\n{json.dumps(rows[3])}\n"
    assert json.loads((tmp_path / "lines" / "reasons.jsonl").read_text().splitlines()[0])["problem"].startswith(
        "train.jsonl[1] (line 2): broken JSON"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "train.json holds no records"),
        ("[{", "train.json: broken JSON at line 1"),
        ('[{"a": 1}]', r"train.json\[0\]: unknown format"),
        ('{"instr-resp": 3}', r"train.json\[0\] \(line 1\): 'instr-resp' is 3"),
    ],
)
def test_files_that_are_none(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        filter_data(tmp_path / "train.json", {"p": BOMB}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
