"""What is said of a running cell: how far it is, and a time left that never rises while nothing happens."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.stand_in_fits import cells_of

from hpa_lightning.study import Store, run_cells, runner
from hpa_lightning.study.cell_progress import CellProgress, task_seconds


def run_line(*tasks: str) -> dict[str, Any]:
    return {"event": "run", "method": "m", "tasks": list(tasks), "sets": []}


def time_line(step: int, phase: str, seconds: float, **others: Any) -> dict[str, Any]:
    return {"event": "time", "step": step, "phase": phase, "seconds": seconds, "by": "A", "number": 0, **others}


def write(file: Path, *lines: dict[str, Any]) -> None:
    with file.open("a") as opened:
        opened.writelines(f"{json.dumps(line)}\n" for line in lines)


def minutes(said: str) -> int | None:
    found = re.search(r"about (\d+) min left$", said)
    return int(found[1]) if found else None


def test_the_time_left_falls_with_the_clock_and_counts_the_first_scoring_of_no_task(tmp_path: Path) -> None:
    """The times of a run of three tasks, 590 s of first scoring, tasks of 732, 678 and 650 s."""
    file = tmp_path / "results.jsonl"
    progress = CellProgress(file)
    said = [progress.said(0)]
    write(file, run_line("a", "b", "c"))
    said.append(progress.said(100))
    write(file, time_line(-1, "evaluate", 589))
    said.append(progress.said(600))
    write(file, time_line(0, "train", 411))
    said.append(progress.said(1020))
    assert said == ["starts", "0 tasks done", "0 tasks done", "0 tasks done"], "nothing is known yet"
    write(file, time_line(0, "evaluate", 321))
    told = [minutes(progress.said(1340 + 60 * minute)) for minute in range(12)]
    assert told == [24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13]
    assert progress.said(1340 + 740) == "1 tasks done, the next takes longer than expected"
    write(file, time_line(1, "train", 377), time_line(1, "evaluate", 300))
    assert progress.said(2100) == "2 tasks done, about 12 min left"
    write(file, time_line(2, "evaluate", 300))
    assert progress.said(2700) == "3 tasks done, ends"


def test_runs_of_other_seeds_tell_of_the_first_task(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    write(file, run_line("a", "b"))
    progress = CellProgress(file, [{-1: 600.0, 0: 600.0, 1: 1200.0}, {-1: 1.0, 0: 1200.0, 1: 1200.0}])
    assert progress.said(0) == "0 tasks done", "whether the first scoring is shared is not known"
    write(file, time_line(-1, "shared", 0.1))
    assert progress.said(0) == "0 tasks done, about 35 min left"
    assert progress.said(300) == "0 tasks done, about 30 min left"
    assert CellProgress(file, [{-1: 600.0, 0: 600.0}]).said(0) == "0 tasks done", "of its second task nothing is known"


def test_a_resumed_run_counts_what_its_task_has_taken(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    write(file, run_line("a", "b"), time_line(-1, "evaluate", 9), time_line(0, "train", 500))
    write(file, time_line(0, "evaluate", 100), time_line(1, "train", 240))
    assert CellProgress(file).said(7) == "1 tasks done, about 6 min left"


def test_a_step_that_was_evaluated_twice_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    lines = [time_line(step, "evaluate", seconds) for step, seconds in ((-1, 1), (0, 2), (-1, 1), (0, 3), (1, 4))]
    write(file, *lines, time_line(1, "evaluate", 5, by="B"))
    file.open("a").write('{"event": "time", "step": 2, "pha')  # being written
    assert CellProgress(file).said(0) == "2 tasks done"
    assert task_seconds(file) == {-1: 1, 0: 3, 1: 9}


def test_a_study_tells_it_of_its_cells(stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second seed knows the times of the first one, of this store."""
    cells, store, given = cells_of(tmp_path, {"good": "run"}, [1, 2]), Store(tmp_path / "store"), []
    run_cells(cells[:1], store, jobs=1, say=lambda line: None)
    write(store.folder(cells[0]) / "results.jsonl", time_line(0, "evaluate", 6.5))

    def progress(*arguments: Any) -> CellProgress:
        given.extend(arguments)
        return CellProgress(*arguments)

    def say(line: str) -> None:
        if line == "  default/good/seed_2 starts":
            (tmp_path / "told").touch()

    waits = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"
    monkeypatch.setattr(runner, "_command", lambda *_: [sys.executable, "-c", waits, str(tmp_path / "told")])
    monkeypatch.setattr(runner, "CellProgress", progress)
    monkeypatch.setattr(runner, "_STATUS_SECONDS", -1.0)
    assert run_cells(cells, store, jobs=1, say=say) == [cells[1]], "it leaves no results"
    assert given == [store.folder(cells[1]) / "results.jsonl", [{0: 6.5}]]
