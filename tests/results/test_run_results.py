"""The figures that are read from a result file."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpa_lightning.results.result_file import ResultWriter, read_results
from hpa_lightning.results.run_results import RunResults, source_commit

RUN = {
    "event": "run",
    "method": "HPA",
    "seed": 1,
    "tasks": ["a", "b", "c"],
    "sets": [
        *({"name": name, "kind": "task"} for name in "abc"),
        *({"name": name, "kind": "safety"} for name in ("figstep", "vlguard")),
        {"name": "xstest", "kind": "over_refusal"},
    ],
}

METRIC = {"task": "exact_match", "safety": "attack_success_rate", "over_refusal": "over_refusal_rate"}


def score(step: int, name: str, kind: str, value: float) -> dict:
    return {"event": "score", "step": step, "set": name, "kind": kind, "metric": METRIC[kind], "score": value, "n": 9}


def step_scores(step: int, tasks: list[float], safety: list[float], harmless: float) -> list[dict]:
    lines = [score(step, name, "task", value) for name, value in zip("abc", tasks, strict=True)]
    lines += [score(step, n, "safety", v) for n, v in zip(("figstep", "vlguard"), safety, strict=True)]
    return [*lines, score(step, "xstest", "over_refusal", harmless)]


@pytest.fixture
def records() -> list[dict]:
    return [
        RUN,
        *step_scores(-1, [0.1, 0.2, 0.3], [0.02, 0.04], 0.1),
        {"event": "time", "step": 0, "phase": "train", "seconds": 60.0},
        {"event": "time", "step": 0, "phase": "fuse", "seconds": 30.0},
        *step_scores(0, [0.9, 0.2, 0.3], [0.1, 0.3], 0.2),
        {"event": "time", "step": 1, "phase": "train", "seconds": 90.0},
        *step_scores(1, [0.7, 0.8, 0.3], [0.2, 0.6], 0.3),
    ]


def test_last_of_the_same_identity_counts(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path / "results.jsonl")
    retention = {"event": "retention", "step": 0, "task": "a", "layer": 1, "module": "q", "columns": 8, "retained": 1}
    lines = [
        RUN,
        score(0, "a", "task", 0.1),
        score(0, "b", "task", 0.2),
        retention,
        {**retention, "module": "k"},
        {**score(0, "a", "task", 0.7), "n": 10},
        {**retention, "retained": 2},
        {**RUN, "command": "resumed"},
    ]
    for line in lines:
        writer.write(line)
    records = read_results(writer.path)
    assert [r.get("score", r.get("retained", r.get("command"))) for r in records] == ["resumed", 0.7, 0.2, 2, 1]


def test_views(records: list[dict]) -> None:
    run = RunResults(records)
    assert (run.method, run.seed, run.tasks, run.steps) == ("HPA (2 of 3 tasks)", 1, ["a", "b", "c"], [-1, 0, 1])
    assert run.initial() == {"a": 0.1, "b": 0.2, "c": 0.3}
    np.testing.assert_array_equal(run.matrix(), [[0.9, 0.2, 0.3], [0.7, 0.8, 0.3], [math.nan] * 3])
    assert run.safety(0) == {"figstep": 0.1, "vlguard": 0.3}
    assert run.over_refusal(-1) == {"xstest": 0.1}
    assert all(math.isnan(rate) for rate in run.safety(2).values())


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (None, {"AP": 0.75, "BWT": -0.2, "MASR": 0.4, "DASR": 0.37, "over_refusal": 0.3, "minutes": 3.0}),
        (1, {"AP": 0.75, "BWT": -0.2, "MASR": 0.4, "DASR": 0.37, "over_refusal": 0.3, "minutes": 3.0}),
        (0, {"AP": 0.9, "BWT": math.nan, "MASR": 0.2, "DASR": 0.17, "over_refusal": 0.2, "minutes": 1.5}),
        (-1, {"AP": 0.2, "BWT": math.nan, "MASR": 0.03, "DASR": 0.0, "over_refusal": 0.1, "minutes": math.nan}),
    ],
)
def test_summary_by_hand(records: list[dict], step: int | None, expected: dict) -> None:
    not_counted = {"helpfulness": math.nan, "empty": math.nan, "cut": math.nan, "no_option": math.nan}
    assert RunResults(records).summary(step) == pytest.approx({**expected, **not_counted}, nan_ok=True)


def test_empty_and_cut_answers_are_counted_over_all_sets(records: list[dict]) -> None:
    counts = {"figstep": {"empty": 4, "cut": 1}, "vlguard": {"empty": 0}, "a": {"empty": 6, "cut": 3}}
    counted = [
        {**record, "n": 10, **counts[record["set"]]}
        if record["event"] == "score" and record["step"] == 0 and record["set"] in counts
        else record
        for record in records
    ]
    run = RunResults(counted)
    assert run.answers(0) == {name: {"n": 10, **one} for name, one in counts.items()}
    assert run.answers(1) == {}  # of a file that does not know them
    summary = run.summary(0)
    assert (summary["empty"], summary["cut"]) == (pytest.approx(10 / 30), pytest.approx(4 / 20))
    assert run.share_of_answers("empty", 0, ["safety"]) == pytest.approx(0.2)


def test_summary_while_the_run_lasts_counts_repeated_steps_once(records: list[dict]) -> None:
    again = [*records, {"event": "time", "step": 1, "phase": "train", "seconds": 30.0}, score(1, "b", "task", math.nan)]
    summary = RunResults(again).summary()
    assert summary["minutes"] == pytest.approx(2.0)
    assert math.isnan(summary["AP"])


def test_summary_without_safety_sets() -> None:
    run = {**RUN, "sets": [{"name": name, "kind": "task"} for name in "abc"]}
    summary = RunResults([run, score(0, "a", "task", 0.5)]).summary()
    assert summary["AP"] == 0.5
    assert all(math.isnan(summary[key]) for key in ("MASR", "DASR", "over_refusal", "minutes"))


def test_unusable_runs_are_refused(records: list[dict]) -> None:
    with pytest.raises(ValueError, match='no "run" event'):
        RunResults(records[1:])
    with pytest.raises(ValueError, match="lacks"):
        RunResults([{"event": "run", "tasks": []}])
    with pytest.raises(ValueError, match="one metric per set"):
        RunResults([*records, {**score(1, "a", "task", 0.1), "metric": "token_f1"}])


@pytest.mark.parametrize("value", [80.0, -0.01, 1.01])
def test_a_share_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(
        ValueError, match=r"of the set 'a' by exact_match; expected a fraction in \[0, 1\] \(not percent\)"
    ):
        RunResults([RUN, score(0, "a", "task", value)])
    captions = RunResults([RUN, {**score(0, "a", "task", 1.18), "metric": "cider"}, score(0, "b", "task", 1.0000001)])
    assert captions.scores(0, "task")["a"] == 1.18
    assert RunResults([RUN, {**score(0, "a", "task", value), "metric": "mine"}]).scores(0, "task")["a"] == value


def test_source_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert source_commit(tmp_path) is None
    (tmp_path / "package").mkdir()
    (tmp_path / "environment").mkdir()
    source = tmp_path / "package" / "code.py"
    source.write_text("x = 1\n")
    git("init", "-q")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    assert source_commit(source.parent) == git("rev-parse", "HEAD")
    assert source_commit(tmp_path / "environment") is None  # lies in the repository but is not tracked
    source.write_text("x = 2\n")
    assert source_commit(source.parent) == git("rev-parse", "HEAD") + "-dirty"


def test_file_holds_one_json_object_per_line(tmp_path: Path, records: list[dict]) -> None:
    writer = ResultWriter(tmp_path / "results.jsonl")
    for record in records:
        writer.write(record)
    assert [json.loads(line) for line in writer.path.read_text().splitlines()] == records
    assert RunResults.from_file(tmp_path).summary() == RunResults(records).summary()
