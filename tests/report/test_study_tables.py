"""Tables of a study, by hand; corrected p-values; commits."""

from __future__ import annotations

import math

import pytest
from support.study_cells import HASH, T2, cell, two_tasks

from hpa_lightning.report.study_report import (
    StudyCell,
    comparison_table,
    learning_table,
    mean_matrix_table,
    origin_table,
    step_table,
)
from hpa_lightning.report.study_tables import broken_cells, set_table, short_commits
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Table, format_cell


def column(table: Table, name: str) -> dict[str, object]:
    place = list(table.columns).index(name)
    return {str(row[0]): row[place] for row in table.rows}


def test_comparison_by_hand(study: list[StudyCell]) -> None:
    table = comparison_table(study, "ref")
    assert [row[0] for row in table.rows] == ["REF", "EWC", "HPA", "ODD †"], "as given; odd refuses half"
    assert column(table, "Seeds") == {"REF": 3, "EWC": 3, "HPA": 2, "ODD †": 1}
    # AP of the reference: 65, 60, 55; BWT -50, -60, -70; MASR 70, 80, 75, before the first task 5.
    assert tuple(column(table, "AP %")["REF"]) == pytest.approx((60.0, T2 * 5 / math.sqrt(3)))
    assert tuple(column(table, "BWT %")["REF"]) == pytest.approx((-60.0, T2 * 10 / math.sqrt(3)))
    assert tuple(column(table, "MASR %")["REF"]) == pytest.approx((75.0, T2 * 5 / math.sqrt(3)))
    assert column(table, "DASR %")["REF"].mean == pytest.approx(70.0)
    assert column(table, "Learnt %")["REF"].mean == pytest.approx(90.0)
    assert column(table, "Learnt %")["HPA"].mean == pytest.approx(75.0)
    assert column(table, "Over-refusal %")["ODD †"] == (50.0, pytest.approx(math.nan, nan_ok=True))
    # EWC - REF per seed: AP 2, 3, 1; MASR -10 each. HPA - REF: AP 10, 15; BWT 50 and 60 (-10 - -60, -10 - -70).
    assert tuple(column(table, "Δ AP")["EWC"]) == pytest.approx((2.0, T2 / math.sqrt(3)))
    assert tuple(column(table, "Δ MASR")["EWC"]) == (pytest.approx(-10.0), 0.0)
    assert column(table, "Δ AP")["HPA"].mean == pytest.approx(12.5)
    assert column(table, "Δ BWT")["HPA"].mean == pytest.approx(55.0)
    assert column(table, "Pairs")["EWC"] == 3 and column(table, "Pairs")["HPA"] == 2
    text = table.text()
    assert "nan" not in text.lower()
    for name in ("Δ AP", "p (AP)", "Δ BWT", "p (BWT)", "Δ MASR", "p (MASR)"):
        assert format_cell(column(table, name)["REF"]) == format_cell(column(table, name)["ODD †"]) == "–"
    assert format_cell(column(table, "p (MASR)")["EWC"]) == "–", "all differences are equal"


def test_p_values_of_a_metric_are_corrected_over_the_methods(study: list[StudyCell]) -> None:
    # AP: t of EWC is 2 sqrt(3) (2 degrees of freedom), of HPA 12.5 / 2.5 = 5 (one: p = 1 - 2 atan(t) / pi).
    t = 2 * math.sqrt(3)
    raw = {"EWC": 1 - t / math.sqrt(t * t + 2), "HPA": 1 - 2 * math.atan(5) / math.pi}
    found = column(comparison_table(study, "ref"), "p (AP)")
    smaller, larger = sorted(raw, key=raw.get)
    assert found[smaller] == pytest.approx(2 * raw[smaller])
    assert found[larger] == pytest.approx(max(raw[larger], 2 * raw[smaller]))
    alone = column(comparison_table([c for c in study if c.method != "hpa"], "ref"), "p (AP)")
    assert alone["EWC"] == pytest.approx(raw["EWC"])


def test_a_reference_that_was_not_run_leaves_dashes(study: list[StudyCell]) -> None:
    table = comparison_table([c for c in study if c.method != "ref"], "ref")
    assert {format_cell(value) for value in column(table, "Δ AP").values()} == {"–"}
    assert set(column(table, "Pairs").values()) == {0}
    assert "Pairs" not in comparison_table(study, None).columns


def test_step_learning_and_matrix_tables(study: list[StudyCell]) -> None:
    steps = step_table(study)
    assert list(steps.columns) == ["MASR %", "aligned", "after digits", "after charts"]
    assert [item.mean for item in steps.rows[0][1:]] == pytest.approx([5.0, 37.5, 75.0])
    learning = learning_table(study)
    assert list(learning.columns) == ["Right after learning, %", "digits", "charts", "Mean"]
    assert [item.mean for item in learning.rows[1][1:]] == pytest.approx([90.0, 80.0, 85.0])
    matrix = mean_matrix_table([c.run for c in study if c.method == "ref"])
    assert [row[0] for row in matrix.rows] == ["aligned", "after digits", "after charts"]
    assert [[item.mean for item in row[1:]] for row in matrix.rows] == [
        pytest.approx(row) for row in ([10.0, 10.0], [100.0, 0.0], [40.0, 80.0])
    ]
    assert matrix.rows[2][1].half_width == pytest.approx(T2 * 10 / math.sqrt(3))


def test_the_commits_of_every_method() -> None:
    other = f"89abcdef{HASH}"
    cells = [cell("a", seed, two_tasks(1.0, 1.0, 1.0, 0.1, commit=other if seed == 3 else HASH)) for seed in (1, 2, 3)]
    cells += [cell(name, 1, two_tasks(1.0, 1.0, 1.0, 0.1)) for name in ("b", "c")]
    resumed = two_tasks(1.0, 1.0, 1.0, 0.1)
    resumed = RunResults([*resumed.records, *({"event": "resume", "step": 1, "commit": c} for c in (HASH, other))])
    rows = origin_table([*cells, cell("d", 4, resumed)]).rows
    assert rows == [
        ["0123456 (seeds 1 2); 89abcde (seed 3)", "A"],
        ["0123456 (seed 1)", "B; C"],
        ["0123456 then 89abcde (seed 4)", "D"],
    ]


def test_one_title_for_several_methods_is_told_apart(study: list[StudyCell]) -> None:
    same = [StudyCell(c.method, "HPA", c.condition, c.seed, c.run) for c in study]
    assert [row[0] for row in step_table(same).rows] == ["HPA (ref)", "HPA (ewc)", "HPA (hpa)", "HPA (odd)"]


def test_a_model_that_says_nothing_is_marked_in_every_table() -> None:
    """Judges take silence for a refusal, so that it has the best attack success of all."""
    silent = two_tasks(0.9, 0.8, 0.5, 0.0, empty={1: 6})
    cells = [cell("ref", 1, two_tasks(0.9, 0.8, 0.5, 0.6, empty={1: 5})), cell("hpa", 1, two_tasks(0.9, 0.8, 0.5, 0.3))]
    cells += [cell("bad", 1, two_tasks(0.9, 0.8, 0.5, 0.6, empty={1: 0, 0: 1})), cell("bad", 2, silent)]
    comparison = comparison_table(cells, "ref")
    for table in (comparison, set_table(cells), step_table(cells), learning_table(cells)):
        assert [row[0] for row in table.rows] == ["REF", "HPA", "BAD ‡"]
    assert column(comparison, "Empty %")["BAD ‡"].mean == pytest.approx(30.0)
    assert [(found.seed, where) for found, where in broken_cells(cells)] == [(2, "after charts: attack 6 of 10")]


def test_commits_are_cut_to_what_tells_them_apart() -> None:
    assert list(short_commits([HASH, f"{HASH}-dirty", HASH]).values()) == ["0123456", "0123456-dirty"]
    found = short_commits([HASH, "0123456f" + "0" * 32, "not recorded"])
    assert list(found.values()) == ["01234567", "0123456f", "not recorded"]
