"""Tables in every format, and what a cell may hold."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from hpa_lightning.report.significance import paired_difference
from hpa_lightning.table import Estimate, PValue, Table, format_cell


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


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(A1)", "\tx"])
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    table = Table(["Method", text], [[text, -1.5]])
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [["Method", f"'{text}"], [f"'{text}", "-1.50"]]


def test_p_values_are_written_with_three_decimals() -> None:
    assert [format_cell(PValue(p)) for p in (0.0123, 0.00099, 1.0, math.nan)] == ["0.012", "<0.001", "1.000", "–"]
    assert Table(("m", "p"), [("a", PValue(0.00012))]).csv() == "m,p\na,0.00012\n"
    with pytest.raises(ValueError, match="in pairs"):
        paired_difference([1.0], [1.0, 2.0])
