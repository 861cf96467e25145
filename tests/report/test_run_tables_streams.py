"""Means over runs: of one stream, and every run once."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.cli import main
from hpa_lightning.report import method_table, write_report
from hpa_lightning.results.run_results import RunResults


def run(seed: int | None, tasks: str = "ab", harm: str = "harm", last: int | None = None, **about: Any) -> RunResults:
    sets = [*({"name": task, "kind": "task"} for task in tasks), *({"name": name, "kind": "safety"} for name in [harm])]
    records: list[dict[str, Any]] = [
        {"event": "run", "method": "HPA", "seed": seed, "tasks": list(tasks), "sets": sets, **about}
    ]
    for step in range(-1, len(tasks) if last is None else last + 1):
        for item in sets:
            score = {"set": item["name"], "kind": item["kind"], "metric": item["kind"], "score": 0.6}
            records.append({"event": "score", "step": step, "after": None, **score})
    return RunResults(records, Path(f"run_{seed}") / "results.jsonl")


def rows(*runs: RunResults) -> list[list[Any]]:
    return [row[:2] for row in method_table(runs).rows]


def test_a_copied_run_is_no_second_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("one", "copy")]
    for folder in folders:
        folder.mkdir()
        (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run(3).records))
    with (folders[1] / "results.jsonl").open("a") as file:
        file.write(json.dumps({"event": "time", "step": 1, "phase": "evaluate", "seconds": 1.0}) + "\n")
    with pytest.raises(SystemExit):
        main(["report", *map(str, folders), "--output", str(tmp_path / "report")])
    told = capsys.readouterr().err
    assert "one/results.jsonl and" in told and "both of the method 'HPA' with seed 3" in told
    assert not [path for path in (tmp_path / "report").rglob("*") if path.is_file()]


def test_runs_without_a_seed_are_runs_of_their_own() -> None:
    assert rows(run(None), run(None), run(-1)) == [["HPA", 3]]


def test_streams_and_sets_stand_in_rows_of_their_own() -> None:
    assert rows(run(1), run(2), run(1, "abc"), run(1, "a")) == [
        ["HPA, 2 tasks", 2],
        ["HPA, 3 tasks", 1],
        ["HPA, 1 task", 1],
    ]
    assert rows(run(1), run(1, "ba")) == [["HPA, tasks a, b", 1], ["HPA, tasks b, a", 1]]
    assert rows(run(1), run(1, harm="other"), run(2)) == [["HPA, sets harm", 2], ["HPA, sets other", 1]]


def _changed(of: RunResults, **change: Any) -> RunResults:
    records = [{**one, **change} if one.get("set") == "harm" else one for one in of.records]
    return RunResults(records, of.path)


def test_other_metrics_stand_in_rows_of_their_own() -> None:
    by_choice = _changed(run(3), metric="unsafe_choice_rate")
    assert rows(run(1), run(2), by_choice) == [
        ["HPA, sets harm by safety", 2],
        ["HPA, sets harm by unsafe_choice_rate", 1],
    ]


def test_runs_that_were_not_scored_alike_are_one_warning(tmp_path: Path) -> None:
    decoding = {"max_new_tokens": 64, "eos_token_id": [2]}
    runs = [
        _changed(run(1), n=100, decoding=decoding),
        _changed(run(2), n=9, decoding=decoding | {"max_new_tokens": 8}),
    ]
    alike = [runs[0], _changed(run(3), n=100, decoding=decoding | {"eos_token_id": [7]}), run(4)]
    paths = []
    for number, one in enumerate([*runs, *alike[1:]]):
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_text("".join(json.dumps(record) + "\n" for record in one.records))
    with pytest.warns(UserWarning, match="not scored alike") as told:
        write_report(paths[:2], tmp_path / "report")
    (said,) = [str(one.message) for one in told if "not scored alike" in str(one.message)]
    assert "number of questions of 'harm': 100 in HPA, seed 1, 9 in HPA, seed 2" in said
    assert "decoding of 'harm': {\"max_new_tokens\": 64} in HPA, seed 1" in said
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the runs shown together")
        write_report([paths[0], *paths[2:]], tmp_path / "alike")


def test_a_run_that_has_learnt_nothing_yet_is_in_a_row_of_its_own() -> None:
    assert rows(run(1), run(2, last=-1)) == [["HPA", 1], ["HPA (0 of 2 tasks)", 1]]
