"""The log of findings continues wherever a killed run has left it."""

from __future__ import annotations

from pathlib import Path

from support.filtered_files import BOMB, answers, contents
from support.instruction_files import write_rows

from hpa_lightning.filtering import filter_data


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
