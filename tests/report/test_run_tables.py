"""Tables of runs agree with the result files."""

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import pytest

from hpa_lightning.report import matrix_table, method_table, run_table, safety_table
from hpa_lightning.report.run_tables import mostly_empty_steps, run_labels, score_table
from hpa_lightning.results.result_file import ResultWriter
from hpa_lightning.results.run_results import RunResults


def test_methods_average_their_runs(write_run) -> None:
    paths = [write_run("s0", "SeqFT", 0), write_run("h0", "HPA", 0), write_run("s1", "SeqFT", 1)]
    runs = [RunResults.from_file(path) for path in paths]
    (seqft, hpa), per_run = method_table(runs).rows, run_table(runs).rows
    assert (seqft[0], seqft[1], hpa[0], hpa[1]) == ("SeqFT", 2, "HPA", 1)
    assert [row[0] for row in per_run] == ["SeqFT, seed 0", "HPA, seed 0", "SeqFT, seed 1"]
    for column in range(2, 8):
        assert seqft[column].mean == pytest.approx((per_run[0][column] + per_run[2][column]) / 2)
        assert hpa[column].mean == pytest.approx(per_run[1][column])
    assert per_run[0][2] == pytest.approx(100 * runs[0].summary()["AP"])
    assert per_run[0][7] == pytest.approx(runs[0].summary()["minutes"]) == pytest.approx(6 * 12.6)


def test_labels_are_distinct(write_run) -> None:
    run = RunResults.from_file(write_run("one", "HPA", 0))
    again = RunResults.from_file(write_run("two", "HPA", 0))
    assert run_labels([run]) == ["HPA"]
    assert run_labels([run, again]) == ["HPA, seed 0 (one)", "HPA, seed 0 (two)"]
    assert len(set(run_labels([run, run]))) == 2


def test_matrix_and_safety_tables_show_the_scores(write_run) -> None:
    run = RunResults.from_file(write_run("one"))
    matrix = matrix_table(run)
    assert [row[0] for row in matrix.rows][:2] == ["aligned", "after AD"]
    assert matrix.rows[0][1] == pytest.approx(100 * run.initial()["AD"])
    assert matrix.rows[3][2] == pytest.approx(100 * run.matrix()[2, 1])
    safety = safety_table(run)
    assert list(safety.columns[-3:]) == ["MASR", "DASR", "over-refusal xstest"]
    assert safety.rows[0][5] == 0.0
    for row in safety.rows:
        assert row[4] == pytest.approx(sum(row[1:4]) / 3)
    assert all(later[4] > earlier[4] - 2 for earlier, later in pairwise(safety.rows))


def test_long_form_holds_every_score(write_run) -> None:
    run = RunResults.from_file(write_run("one"))
    rows = list(csv.DictReader(io.StringIO(score_table([run]).csv())))
    assert len(rows) == 7 * (6 + 3 + 1) == len(run.events("score"))
    for row, event in zip(rows, run.events("score"), strict=True):
        assert (int(row["step"]), row["kind"], row["set"]) == (event["step"], event["kind"], event["set"])
        assert float(row["score_percent"]) == pytest.approx(100 * event["score"], abs=0.005)


@pytest.mark.parametrize(
    ("step", "told"), [(4, ""), (5, "after TextVQA: TextVQA 300 of 500"), (-1, "aligned: TextVQA 300 of 500")]
)
def test_answers_of_a_task_still_ahead_may_be_empty(write_run, tmp_path: Path, step: int, told: str) -> None:
    """No score of it counts yet, so neither does silence; of the aligned model it does."""
    folder = write_run("run")
    writer = ResultWriter(folder / "results.jsonl")
    lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
    for line in lines:
        if line["event"] == "score" and line["set"] == "TextVQA":
            line["empty"] = 300 if line["step"] == step else 0
    writer.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert mostly_empty_steps(RunResults.from_file(folder)) == told
