"""Runs are compared on the same evaluation sets, with the same metrics; other numbers of questions are told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from support.study_cells import cell, two_tasks

from hpa_lightning.report.study_report import comparison_table
from hpa_lightning.report.study_tables import step_table
from hpa_lightning.results.run_results import RunResults


def scored(number: int | None = 10, metric: str = "m", more: bool = False) -> RunResults:
    run = two_tasks(0.9, 0.8, 0.5, 0.4)
    changes: dict[str, Any] = {"metric": metric, "n": number}
    records = [{**one, **changes} if one.get("set") == "attack" else one for one in run.records]
    if more:
        records[0] = {**records[0], "sets": [*records[0]["sets"], {"name": "hard", "kind": "safety"}]}
        records += [{**one, "set": "hard"} for one in records if one.get("set") == "attack"]
    return RunResults(records)


def test_other_sets_and_other_metrics_are_an_error() -> None:
    cells = [cell("a", 1, scored()), cell("b", 1, scored(more=True))]
    told = r"B \(seed 1\) and A \(seed 1\) cannot be compared: kinds .* \['hard'\] are \['safety'\] and \['none'\]"
    for table in (comparison_table, step_table):
        with pytest.raises(ValueError, match=told):
            table(cells, "MASR")
    with pytest.raises(ValueError, match=r"metrics of the evaluation sets \['attack'\] are \['other'\] and \['m'\]"):
        comparison_table([cell("a", 1, scored()), cell("a", 2, scored(metric="other"))], None)


def test_other_numbers_of_questions_are_one_warning() -> None:
    cells = [cell("a", 1, scored()), cell("b", 1, scored(20)), cell("b", 2, scored(20)), cell("c", 1, scored(None))]
    with pytest.warns(UserWarning, match=r"of 'attack': 10 in A \(seed 1\), 20 in B \(seed 1\)") as told:
        comparison_table(cells, "a")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison_table([cells[0], cells[3]], "a")
