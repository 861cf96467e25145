"""Tables: formats, confidence intervals, and agreement with the result files."""

import csv
import io
import json
import math
from itertools import pairwise

import pytest
from scipy import stats

from hpa_lightning.report import Estimate, Table, estimate, matrix_table, method_table, run_table, safety_table
from hpa_lightning.report.run_tables import run_labels, score_table
from hpa_lightning.results.run_results import RunResults


@pytest.mark.parametrize("values", [[1.0, 2.0], [75.7, 76.6, 74.1, 75.0]])
def test_confidence_interval_is_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    mean, half_width = estimate(values)
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))


def test_one_value_has_no_interval() -> None:
    assert estimate([3.0]).mean == 3.0 and math.isnan(estimate([3.0]).half_width)
    assert str(estimate([3.0])) == "3.00"
    assert str(estimate([math.nan, 1.0])) == "–"


def test_formats_agree() -> None:
    table = Table(("Method", "Runs", "AP %"), [("A|B", 2, Estimate(50.0, 1.25)), ("SeqFT", 1, math.nan)])
    assert table.text().splitlines() == [
        "Method  Runs          AP %",
        "A|B        2  50.00 ± 1.25",
        "SeqFT      1             –",
    ]
    assert table.markdown().splitlines() == [
        "| Method | Runs | AP % |",
        "| --- | ---: | ---: |",
        "| A\\|B | 2 | 50.00 ± 1.25 |",
        "| SeqFT | 1 | – |",
    ]
    assert table.csv() == "Method,Runs,AP %,AP % ± (95 % CI)\nA|B,2,50.00,1.25\nSeqFT,1,,\n"
    assert json.loads(table.json())[1] == {"Method": "SeqFT", "Runs": 1, "AP %": None, "AP % ± (95 % CI)": None}


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


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(A1)", "\tx"])
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    table = Table(["Method", text], [[text, -1.5]])
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [["Method", f"'{text}"], [f"'{text}", "-1.50"]]
