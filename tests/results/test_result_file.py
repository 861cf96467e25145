"""The result file: writing, crashes, torn lines."""

import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter, read_results


def test_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "results.jsonl"
    writer = ResultWriter(path)
    assert not path.parent.exists()  # a process that never writes leaves no trace
    writer.write({"event": "x", "step": 0, "text": "été\nzwei"})
    ResultWriter(path).write({"event": "x", "step": 1, "values": torch.tensor([1.0, math.inf]), "n": np.int64(3)})
    assert read_results(path) == read_results(path.parent)
    assert read_results(path) == [
        {"event": "x", "step": 0, "text": "été\nzwei"},
        {"event": "x", "step": 1, "values": [1.0, None], "n": 3},
    ]
    assert len(path.read_text().splitlines()) == 2


def test_not_finite_is_null(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path / "results.jsonl")
    writer.write({"event": "x", "a": math.nan, "b": [-math.inf, {"c": np.float32("nan")}], "d": torch.tensor(math.nan)})
    assert "NaN" not in writer.path.read_text() and "Infinity" not in writer.path.read_text()
    assert read_results(tmp_path) == [{"event": "x", "a": None, "b": [None, {"c": None}], "d": None}]


def test_bad_records_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match='"event"'):
        writer.write({"step": 0})
    with pytest.raises(ValueError, match="JSON cannot represent"):
        writer.write({"event": "x", "value": object()})
    assert not writer.path.exists()


def test_threads_do_not_tear_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    write_all = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        """A write in parts, as the system may do it, with time for other threads between them."""
        time.sleep(0.001)
        return write_all(descriptor, data[: len(data) // 2 + 1])

    monkeypatch.setattr(os, "write", write_half)

    def write(number: int) -> None:
        writer = ResultWriter(path)
        for step in range(10):
            writer.write({"event": "x", "step": step, "task": number, "text": "y" * 100})

    ResultWriter(path).write({"event": "start"})
    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_results(path)) == 41


def test_torn_last_line_is_left_out_and_then_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    ResultWriter(path).write({"event": "x", "step": 0})
    with path.open("a") as file:
        file.write('{"event": "x", "st')
    with pytest.warns(UserWarning, match="not finished"):
        assert read_results(path) == [{"event": "x", "step": 0}]
    with pytest.warns(UserWarning, match="cut off"):
        ResultWriter(path).write({"event": "x", "step": 1})
    assert read_results(path) == [{"event": "x", "step": 0}, {"event": "x", "step": 1}]


@pytest.mark.parametrize(
    ("line", "message"), [("{broken", "not valid JSON"), ("[1]", "not an object"), ("{}", "event")]
)
def test_broken_earlier_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f'{{"event": "x"}}\n\n{line}\n{{"event": "y"}}\n')
    with pytest.raises(ValueError, match=f"line 3 .*{message}"):
        read_results(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl"):
        read_results(tmp_path)


def test_a_name_that_is_not_utf_8_is_written_and_read_back(tmp_path: Path) -> None:
    """`sys.argv` has half a surrogate pair for each byte of a file's name that is not UTF-8."""
    event = {"event": "run", "command": "fit --config caf\udce9.yaml", "note": "ß", "method": "m", "seed": 0}
    ResultWriter(tmp_path / RESULT_FILE).write({**event, "tasks": [], "sets": []})
    assert "ß" in (tmp_path / RESULT_FILE).read_text(encoding="utf-8")
    assert read_results(tmp_path)[0]["command"] == event["command"]
