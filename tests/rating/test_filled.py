"""Filled forms: pages and CSV, and what cannot be taken by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.rated_runs import fill, honest, strict

from hpa_lightning.cli import main
from hpa_lightning.rating import rate_outcome
from hpa_lightning.rating.form import CSV_COLUMNS


def test_files_that_cannot_be_taken_are_named(key: Path, tmp_path: Path) -> None:
    ada = fill(key, "Ada", honest, tmp_path / "ada.json")
    half = fill(key, "Bo", lambda item, run: {} if run else honest(item, run), tmp_path / "half.json")
    first = json.loads(key.read_text())["items"][0]["id"]
    for files, message in (
        ([ada, fill(key, "ada", strict, tmp_path / "twice.json")], r"ada.json and .*twice.json are both of the rater"),
        ([half], r"half.json of 'Bo' is incomplete: 10 of 20 answers have no safety"),
        ([], "expected the file of each rater"),
    ):
        with pytest.raises(ValueError, match=message):
            rate_outcome(files, key, draws=10)
    for change, message in (
        ({"rater": " "}, "bad.json names no rater"),
        ({"form": "0" * 16}, "bad.json is of the form '0000000000000000'; the key is that of"),
        ({"shown": "1"}, "bad.json is of a form whose texts were changed"),
        ({"ratings": {"q9999": []}}, r"bad.json rates \['q9999'\], which the form does not have"),
        ({"ratings": {first: [{}]}}, "bad.json: q0001 has ratings .* expected those of 2 answers"),
        ({"ratings": {first: [{"safety": 6}, {}]}}, "bad.json: q0001 has 'safety': 6; expected"),
        ({"ratings": {first: [{"safety": [1]}, {}]}}, "q0001 has 'safety': .1.; expected"),
        ({"ratings": {first: [{"beauty": 1}, {}]}}, "q0001 has 'beauty': 1; expected"),
        ({"ratings": 7}, "the ratings are 7"),
        ({"format": "other"}, "bad.json holds no ratings"),
    ):
        with pytest.raises(ValueError, match=message):
            rate_outcome([fill(key, "Cy", honest, tmp_path / "bad.json", **change)], key, draws=10)
    assert "half.json of 'Bo' is incomplete" in rate_outcome([half], key, incomplete=True, draws=10).notes[0]
    with pytest.raises(ValueError, match="is not the key of a rating form"):
        rate_outcome([ada], ada, draws=10)


def test_a_filled_csv_counts_like_the_page(key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = {item["id"]: item for item in json.loads(key.read_text())["items"]}
    rows = list(csv.DictReader((tmp_path / "form" / "form.csv").open(newline="")))
    for row in rows:
        item = items[row["item"]]
        row |= {"rater": "Cy"} | {k: str(v) for k, v in honest(item, item["order"][int(row["answer"]) - 1]).items()}

    def write(name: str) -> Path:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\r\n")
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    page = rate_outcome([fill(key, "Cy", honest, tmp_path / "cy.json")], key, draws=20)
    table = rate_outcome([write("cy.csv")], key, draws=20)
    assert table.means.rows == page.means.rows and table.wins.rows == page.wins.rows
    output = tmp_path / "figures.json"
    main(["rate", "import", str(tmp_path / "cy.csv"), "--key", str(key), "--output", str(output)])
    assert json.loads(output.read_text())["raters"] == ["Cy"] and "Win rates" in capsys.readouterr().out
    rated, rows[2]["safety"] = rows[2]["safety"], "²"
    with pytest.raises(ValueError, match=r"power.csv: q\d+ has 'safety': '²'; expected"):
        rate_outcome([write("power.csv")], key)
    rows[2]["safety"] = rated
    rows[3]["text"] += " more"
    with pytest.raises(ValueError, match=r"edited.csv, row 5: the question or the answer was changed"):
        rate_outcome([write("edited.csv")], key)
    rows[3] = rows[2]
    with pytest.raises(ValueError, match=r"twice.csv, row 5: .* occurs twice"):
        rate_outcome([write("twice.csv")], key)
    with (tmp_path / "cy.csv").open("a") as file:
        file.write('"')
    with pytest.raises(ValueError, match=r"cy.csv: broken in the row behind line \d+: unexpected end of data"):
        rate_outcome([tmp_path / "cy.csv"], key)
    (tmp_path / "long.csv").write_text(",".join([*CSV_COLUMNS[:-1], "x" * 200_000]))
    with pytest.raises(ValueError, match=r"long\.csv has the columns"):
        rate_outcome([tmp_path / "long.csv"], key)
