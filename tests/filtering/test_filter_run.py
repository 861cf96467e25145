"""Runs of a filter over upstream's files: what is written, what is refused, and what a killed run goes on with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.instruction_files import llava_row, sharegpt4v_row, vlguard_rows, write_rows

from hpa_lightning.data import Record, read_records
from hpa_lightning.data.readers.json_file import JsonFile
from hpa_lightning.filtering import (
    Assessment,
    FilterRule,
    Finding,
    HarmFilter,
    PhraseFilter,
    filter_data,
    preview_filter,
)

BOMB = PhraseFilter(phrases=["pipe bomb", "napalm"])


def answers(*harmful: int, count: int = 10) -> list[dict[str, Any]]:
    return [
        llava_row(n, f"What is shown in picture {n}?", "A napalm fire." if n in harmful else "Zwei Hunde 🐕 spielen.")
        for n in range(count)
    ]


def raw_rows(path: Path) -> list[bytes]:
    file = JsonFile(path)
    return [file.row_bytes(index) for index, _ in list(file.rows())]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


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


class Scripted:
    """A part that says what the test wants, by the record's number."""

    def __init__(self, found: Mapping[int, Assessment]) -> None:
        self.found = {str(key): value.value for key, value in found.items()}

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        kinds = [self.found.get(str(int(record.id)), "harmless") for record in records]
        return [Finding(Assessment(kind), detail="it stammers" * (kind == "no verdict")) for kind in kinds]


H, N, U, NOTHING = Assessment.HARMFUL, Assessment.NO_VERDICT, Assessment.UNREADABLE, Assessment.NOTHING
PARTS: dict[str, HarmFilter] = {
    "a": Scripted({0: H, 1: H, 2: H, 5: N, 6: H}),
    "b": Scripted({0: H, 1: H, 3: H, 4: U, 6: NOTHING}),
    "c": Scripted({0: H, 6: N}),
}


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        (FilterRule(unreadable="drop"), [0, 1, 2, 3, 4, 5, 6]),
        (FilterRule(no_verdict="keep", unreadable="keep"), [0, 1, 2, 3, 6]),
        (FilterRule("all", no_verdict="keep", unreadable="keep"), [0]),
        (FilterRule("all", unreadable="keep"), [0, 5, 6]),
        (FilterRule("votes", 2, "keep", "keep"), [0, 1]),
        (FilterRule("votes", 3, "keep", "keep"), [0]),
    ],
)
def test_how_parts_combine(rule: FilterRule, dropped: list[int], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers())
    outcome = filter_data(path, PARTS, tmp_path / "out", rule=rule)
    assert [int(row["id"]) for row in json.loads(outcome.dropped.read_text())] == dropped
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert {row["Part"]: (row["Harmful"], row["by it alone"], row["No verdict"]) for row in counts["parts"]} == {
        "a": (4, 2, 1),
        "b": (3, 1, 0),
        "c": (1, 0, 1),
    }
    assert {row["Harmful by"]: row["Records"] for row in counts["overlaps"]} == {
        "a + b + c": 1,
        "a + b": 1,
        "a": 2,
        "b": 1,
    }
    assert counts["kept"] + counts["dropped"] == counts["records"] == 10


def test_what_could_not_be_told_is_never_harmless(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers())
    with pytest.raises(ValueError, match=r"train.json\[4\]: unreadable, says 'b'.*unreadable is 'stop'"):
        filter_data(path, PARTS, tmp_path / "out")
    # What was assessed until then is not lost, and what becomes of such a record can be said now.
    assert filter_data(path, PARTS, tmp_path / "out", rule=FilterRule(unreadable="keep")).counts.dropped == 6
    rule = FilterRule(no_verdict="stop", unreadable="keep")
    with pytest.raises(ValueError, match=r"train.json\[5\]: no verdict, says 'a': it stammers. .*no_verdict is 'stop'"):
        filter_data(path, PARTS, tmp_path / "other", rule=rule)
    silent = Scripted(dict.fromkeys(range(10), N))
    with pytest.raises(ValueError, match="the part 'mute' gave no verdict on any of the first 10 records"):
        filter_data(path, {"mute": silent}, tmp_path / "third")


class Killed:
    """Kills its process at a call, as `kill -9` does."""

    def __init__(self, at: int | None) -> None:
        self._at = at
        self._calls = 0

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        self._calls += 1
        if self._calls == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Finding.of(int(record.id) % 4 == 1, score=int(record.id) / 97) for record in records]


def in_a_child(action: Any) -> int:
    """Run something in a forked process, and return how it ended."""
    if (child := os.fork()) == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("lines", [False, True])
def test_a_killed_run_goes_on_with_the_same_result(lines: bool, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(3, 8, count=23), lines)
    whole = filter_data(path, {"k": Killed(None), "p": BOMB}, tmp_path / "whole", chunk=4)
    out = tmp_path / "out"
    calls = []
    for at in (1, 2, 3, 1, 1):
        ended = in_a_child(lambda at=at: filter_data(path, {"k": Killed(at), "p": BOMB}, out, chunk=4))
        assert os.WTERMSIG(ended) == signal.SIGKILL and not out.exists()
        calls.append(len((tmp_path / "out.partial" / "findings.jsonl").read_bytes().splitlines()))
    assert calls == [0, 4, 12, 12, 12]  # nothing that was saved is assessed again
    filter_data(path, {"k": Killed(None), "p": BOMB}, out, chunk=4)
    assert contents(out) == contents(whole.kept.parent) and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("function", ["flush", "rename", "replace"])
def test_killed_while_the_output_is_made(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "train.json", answers(3, 8))
    filter_data(path, {"p": BOMB}, tmp_path / "whole")

    def dies(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr("hpa_lightning.files.flush" if function == "flush" else f"os.{function}", dies)
        assert in_a_child(lambda: filter_data(path, {"p": BOMB}, tmp_path / "out")) == signal.SIGKILL
    filter_data(path, {"p": BOMB}, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_log_that_ends_anywhere(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", answers(3, 8), lines=True)
    filter_data(path, {"p": BOMB}, tmp_path / "whole", chunk=4)
    expected = contents(tmp_path / "whole")
    log = expected["findings.jsonl"]
    for end in (*range(0, len(log), 61), len(log)):
        for tail in (b"", b"\0" * 30 + b"\n"):
            partial = tmp_path / "out.partial"
            partial.mkdir()
            (partial / ".being-written").touch()
            (partial / "settings.json").write_bytes(expected["settings.json"])
            (partial / "settings.json.unfinished").write_bytes(b"{")
            (partial / "findings.jsonl").write_bytes(log[:end] + tail)
            filter_data(path, {"p": BOMB}, tmp_path / "out", chunk=4)
            assert contents(tmp_path / "out") == expected, (end, tail)
            for file in (tmp_path / "out").iterdir():
                file.unlink()
            (tmp_path / "out").rmdir()


def test_other_settings_are_refused_and_the_same_are_done(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(3))
    out = tmp_path / "out"
    first = filter_data(path, {"p": BOMB}, out)
    stamp = first.kept.stat().st_mtime_ns
    again = filter_data(path, {"p": PhraseFilter(phrases=["pipe bomb", "napalm"])}, out)
    assert again.kept.stat().st_mtime_ns == stamp and again.counts.json() == first.counts.json()
    for changes, said in (
        ({"parts": {"p": PhraseFilter(phrases=["napalm"])}}, "parts.p.phrases"),
        ({"parts": {"q": BOMB}}, r"parts.p: .* parts.q"),
        ({"rule": FilterRule(no_verdict="keep")}, "no_verdict: 'drop' there, 'keep' now"),
        ({"chunk": 5}, "chunk: 64 there, 5 now"),
        ({"image_folder": tmp_path.parent}, "image_folder"),
    ):
        with pytest.raises(ValueError, match=f"out was made with other settings .*{said}"):
            filter_data(**{"path": path, "parts": {"p": BOMB}, "output": out, **changes})  # type: ignore[arg-type]
    held = out.rename(tmp_path / "out.partial")  # a run that is not finished may be given another rule
    (held / ".being-written").touch()
    kept = filter_data(path, {"p": BOMB}, out, rule=FilterRule("votes", 1)).kept.read_bytes()
    assert kept == first.kept.read_bytes() and json.loads((out / "settings.json").read_text())["votes"] == 1
    write_rows(path, answers(4))
    with pytest.raises(ValueError, match=r"input: 'train.json, a file of .*' there"):
        filter_data(path, {"p": BOMB}, out)
    out.rename(tmp_path / "out.partial")
    (tmp_path / "out.partial" / ".being-written").touch()
    with pytest.raises(ValueError, match=r"out.partial was begun with other settings \(input"):
        filter_data(path, {"p": BOMB}, out)


def test_outputs_that_are_in_the_way(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(3))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"is in .*, which is written to"):
        filter_data(path, {"p": BOMB}, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other exists and is not the output of a filter"):
        filter_data(path, {"p": BOMB}, tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "out.partial")
    with pytest.raises(ValueError, match=r"out.partial exists and was not left by a filter"):
        filter_data(path, {"p": BOMB}, tmp_path / "out")
    inside = tmp_path / "x.partial" / "kept.json"
    inside.parent.mkdir()
    write_rows(inside, answers(3))
    with pytest.raises(ValueError, match=r"is in .*x.partial"):
        filter_data(inside, {"p": BOMB}, tmp_path / "x")
    assert path.read_bytes() == before["train.json"]


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


def test_arguments_that_are_wrong(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": tmp_path / "no.json"}, "there is no data file"),
        ({"image_folder": tmp_path / "no"}, "image_folder: there is no folder"),
        ({"parts": {}}, "the filter has no parts"),
        ({"parts": {"p": 3}}, "the part 'p' is 3"),
        ({"parts": {"p": lambda records: []}}, "the part 'p' said 0 things of 10 records"),
        ({"parts": {"p": lambda records: [True] * len(records)}}, "returned True; expected a Finding"),
        ({"rule": FilterRule("votes", 2)}, "votes is 2 of 1 parts"),
        ({"chunk": 0}, "chunk is 0"),
    ]
    for changes, said in cases:
        with pytest.raises(ValueError, match=said):
            filter_data(**{"path": path, "parts": {"p": BOMB}, "output": tmp_path / "out", **changes})
    with pytest.raises(ValueError, match="rule is 'any' and votes is 2"):
        FilterRule("any", 2)
    with pytest.raises(ValueError, match="rule is 'some'; expected one of any, all, votes"):
        FilterRule("some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit is 0"):
        preview_filter(path, {"p": BOMB}, 0)


def test_preview_writes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(0, 1, 2, 9))
    counts, examples = preview_filter(path, {"p": BOMB}, limit=5, examples=2, chunk=2)
    assert counts.dropped == 3 and counts.kept == 2
    assert len(examples) == 2 and examples[0].startswith(
        "train.json[0], p: harmful; napalm; turn 1 (assistant); 'A napalm"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["train.json"]
