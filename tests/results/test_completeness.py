"""Reports are of finished runs, unless asked otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.cli import main
from hpa_lightning.results.completeness import require_finished, unfinished_run
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.study.store import _read_archive

ARCHIVE = Path(__file__).parents[2] / "docs" / "results" / "nano.jsonl"


def events(steps: list[int], sets: str = "abs", **run: Any) -> list[dict[str, Any]]:
    kinds = {"a": "task", "b": "task", "s": "safety"}
    described = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    found: list[dict[str, Any]] = [{"event": "run", "method": "M", "tasks": ["a", "b"], "sets": described, **run}]
    for step in steps:
        for name in sets:
            metric = "attack_success_rate" if name == "s" else "exact_match"
            score = {"step": step, "set": name, "kind": kinds[name], "metric": metric, "score": 0.5}
            found.append({"event": "score", "after": None, **score})
    return found


END = {"event": "end", "finished_tasks": 2, "tasks": 2}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (events([-1, 0, 1]), None),
        (events([0, 1]), None),  # the aligned model was not asked for
        ([*events([-1, 0, 1], ends=True), END], None),
        ([*events([-1, 0], ends=True), {**END, "finished_tasks": 1}], None),  # a gate ended the stream
        ([*events([-1], ends=True), {**END, "finished_tasks": 0}], None),  # `hpa-lightning test`
        (events([-1, 0, 1], ends=True), "cut off before its end"),
        (events([-1, 0]), r"on a, b, s after task 1 \('b'\)"),
        (events([-1, 0, 1])[:-1], r"on s after task 1 \('b'\)"),
        (events([-1], "ab"), "the aligned model was not scored on s"),
        # An end of before the stream was made longer.
        ([*events([-1, 0]), {**END, "finished_tasks": 1, "tasks": 1}], r"after task 1"),
    ],
)
def test_what_a_run_lacks_is_told(records: list[dict[str, Any]], reason: str | None) -> None:
    run = RunResults(records, "results.jsonl")
    assert (unfinished_run(run) is None) is (reason is None)
    if reason is not None:
        with pytest.raises(
            ValueError, match=f"results.jsonl is of a run that is not finished: .*{reason}.*--unfinished"
        ):
            require_finished([run])


def test_archived_runs_of_before_are_whole() -> None:
    runs = [RunResults(cell["events"]) for cell in _read_archive(ARCHIVE).values()]
    require_finished(runs)
    assert len(runs) > 10


@pytest.mark.parametrize("command", ["report", "answers", "judge"])
def test_commands_refuse_a_run_that_is_not_finished(command: str, tmp_path: Path) -> None:
    lines = events([-1, 0])
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "predictions").mkdir()
    for step in ("00", "01"):
        row = {"id": "1", "prompt": "p", "response": "no", "references": []}
        (tmp_path / "predictions" / f"step_{step}_s.jsonl").write_text(json.dumps(row) + "\n")
    output = tmp_path / ("out.html" if command == "answers" else "out")
    with pytest.raises(SystemExit, match=rf"{command}: .*not finished: nothing was scored on a, b, s after task 1"):
        main([command, str(tmp_path), "--output", str(output)])
    assert not output.exists()
    main([command, str(tmp_path), "--unfinished", "--output", str(output)])
    assert output.exists()
