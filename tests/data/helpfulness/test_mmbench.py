"""MMBench's TSV."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table
from support.published_layouts import ROUND, jpeg, mmbench_rows, write_mmbench

from hpa_lightning.data import MMBench
from hpa_lightning.data.record import check_record, open_image


def test_rows_are_read_as_they_stand(tmp_path: Path) -> None:
    rows = mmbench_rows(6)
    records = MMBench(str(write_mmbench(tmp_path / "MMBench.tsv", rows))).read()
    assert [record.id for record in records] == [str(row["index"]) for row in rows]
    assert [record.group for record in records] == [str(row["index"] % ROUND) for row in rows]
    first = records[0]
    assert first.prompt.splitlines()[:3] == ["Look well.", "What is in picture 0?", f"A. {rows[0]['A']}"]
    assert first.prompt.endswith("Answer with the option's letter from the given choices directly.")
    assert first.answers == (rows[0]["answer"], rows[0][rows[0]["answer"]])
    assert first.categories == {"category": "identity_reasoning", "l2-category": "attribute_reasoning", "split": "test"}
    for record in records:
        check_record(record, needs_reference=True)
        assert len(record.choices) == sum(f"\n{letter}. " in record.prompt for letter in "ABCD")
    # A rotation names the row that has its picture.
    assert records[1].images[0] is records[0].images[0]
    assert open_image(records[1].images[0], "").size == (32, 32)


def test_a_picture_of_megabytes_stands_in_a_cell(tmp_path: Path) -> None:
    """csv's own limit of 131072 characters is below that of a photograph."""
    rows = mmbench_rows(1)
    rows[0]["image"] = base64.b64encode(jpeg(0) + bytes(200_000)).decode()
    records = MMBench(str(write_mmbench(tmp_path / "MMBench.tsv", rows))).read()
    assert len(records[0].images[0].data) > 131_072


def test_made_rotations_are_those_of_the_file(tmp_path: Path) -> None:
    rows = mmbench_rows(5)
    whole = MMBench(str(write_mmbench(tmp_path / "whole.tsv", rows))).read()
    firsts = write_mmbench(tmp_path / "first.tsv", [row for row in rows if row["index"] < ROUND])
    made = MMBench(str(firsts), rounds="made").read()
    assert [(r.id, r.group, r.prompt, r.answers) for r in made] == [(r.id, r.group, r.prompt, r.answers) for r in whole]
    assert [r.id for r in MMBench(str(firsts), rounds="first").read()] == [str(index) for index in range(5)]
    with pytest.raises(ValueError, match=r"first.tsv has no rotated questions .* pass rounds='made'"):
        MMBench(str(firsts)).read()


def test_by_text_the_question_stands_alone(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    record = MMBench(str(write_mmbench(tmp_path / "MMBench.tsv", rows)), ask="text").read()[0]
    assert record.prompt == "Look well.\nWhat is in picture 0?"
    assert record.answers == (rows[0][rows[0]["answer"]],) and record.answers[0] in record.choices


def test_the_hubs_parquet_is_read(tmp_path: Path) -> None:
    rows = [dict(row) for row in mmbench_rows(3)]
    for row in rows:
        row["image"] = {"bytes": jpeg(row["index"] % ROUND), "path": None}
        row["L2-category"] = row.pop("l2-category")
        row |= {"hint": row["hint"] or "nan"} | {letter: row[letter] or "nan" for letter in "ABCD"}
    write_table(pa.Table.from_pylist(rows), tmp_path / "dev.parquet")
    records = MMBench(str(tmp_path / "dev.parquet")).read()
    assert len(records) == len(rows)
    table = MMBench(str(write_mmbench(tmp_path / "a.tsv", mmbench_rows(3)))).read()
    assert [record.prompt for record in records] == [record.prompt for record in table]
    assert records[0].categories["l2-category"] == "attribute_reasoning"


def with_options(rows: list[dict[str, Any]], *options: str, answer: str = "A") -> dict[str, Any]:
    """The first row with these options."""
    return rows[0] | dict(zip("ABCD", (*options, "", ""), strict=False)) | {"answer": answer}


def test_none_is_an_option_where_the_file_tells_so(tmp_path: Path) -> None:
    rows = [row for row in mmbench_rows(3) if row["index"] < ROUND]

    def choices(first: dict[str, Any], second: dict[str, Any] | None = None) -> list[tuple[str, ...]]:
        others = [] if second is None else [second | {"index": 1}]
        path = write_mmbench(tmp_path / "MMBench.tsv", [first, *others])
        return [record.choices for record in MMBench(str(path), rounds="first", ask="text").read()]

    last = with_options(rows, "two", "one", "None")
    assert choices(with_options(rows, "None", "two", "one", answer="B"), last)[1] == ("two", "one", "None")
    assert choices(with_options(rows, "two", "None", answer="B"), last)[1] == ("two", "one", "None")
    with pytest.warns(UserWarning, match=r"MMBench.tsv: 1 cells of options say None and are read as no option"):
        assert choices(last) == [("two", "one")]
    # As a program writes empty cells; the right one is an option nevertheless.
    empty = with_options(rows, "yes", "no", "None", "None")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choices(with_options(rows, "two", "None", answer="B"), empty) == [("two", "None"), ("yes", "no")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, r"line 2\): the answer is ''.*Test files have no answers"),
        ({"answer": "D", "C": "", "D": ""}, "the answer is 'D'"),
        ({"index": "x"}, "the index is 'x'"),
        ({"B": "", "C": "", "D": ""}, "1 options; expected two or more"),
        ({"image": "77"}, "the image is that of row 77, which does not come before it"),
        ({"image": "?" * 99}, "is not base64"),
        ({"question": " "}, "'question' is ' '"),
    ],
)
def test_broken_rows_are_told(tmp_path: Path, change: dict[str, str], message: str) -> None:
    rows = mmbench_rows(2)
    rows[0] |= change
    with pytest.raises(ValueError, match=message):
        MMBench(str(write_mmbench(tmp_path / "MMBench.tsv", rows))).read()


def test_questions_that_are_not_asked_in_all_rotations_are_told_once(tmp_path: Path) -> None:
    rows = mmbench_rows(4)
    last = [row for row in rows if row["index"] % ROUND == 3][-1]
    rows.remove(last)
    with pytest.warns(UserWarning, match=r"1 of 4 questions have fewer rows than options, the first is MMBench.tsv"):
        MMBench(str(write_mmbench(tmp_path / "MMBench.tsv", rows))).read()
