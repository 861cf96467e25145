"""Runs of a filter: killed ones end with the same result, arguments are checked, a preview writes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.filtered_files import BOMB, answers, contents
from support.instruction_files import write_rows

from hpa_lightning.data import Record
from hpa_lightning.filtering import FilterRule, Finding, filter_data, preview_filter


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


def test_a_part_that_fails_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers())

    def late(records: Sequence[Record]) -> list[Finding]:
        if int(records[0].id) >= 4:
            raise KeyError("weights")
        return [Finding.of(False) for _ in records]

    with pytest.raises(RuntimeError, match=r"the part 'mine' failed on train.json\[4\] to train.json\[7\]: KeyError"):
        filter_data(path, {"mine": late}, tmp_path / "out", chunk=4)
    assert len((tmp_path / "out.partial" / "findings.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match=r"the part 'b' failed on .*the score of a finding is nan"):
        filter_data(path, {"b": lambda records: [Finding.of(True, score=float("nan"))]}, tmp_path / "b")
    assert Finding("harmless", categories=["a"]) == Finding.of(False, categories="a")  # type: ignore[arg-type]


def test_preview_writes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(0, 1, 2, 9))
    counts, examples = preview_filter(path, {"p": BOMB}, limit=5, examples=2, chunk=2)
    assert counts.dropped == 3 and counts.kept == 2
    assert len(examples) == 2 and examples[0].startswith(
        "train.json[0], p: harmful; napalm; turn 1 (assistant); 'A napalm"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["train.json"]


def test_a_preview_counts_rows_that_cannot_be_read_as_the_run_does(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", [*answers(0, 1), {"id": "broken", "conversations": []}])
    rule = FilterRule(bad_records="drop")
    counts, _ = preview_filter(path, {"p": BOMB}, limit=20, rule=rule)
    assert counts.bad == 1
    assert counts.json() == filter_data(path, {"p": BOMB}, tmp_path / "out", rule=rule).counts.json()
