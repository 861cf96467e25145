"""PKU-SafeRLHF: which response is chosen, and what is counted and told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from support.pair_files import lines, texts

from hpa_lightning.data import DataWarning, SafeRLHF


def safe_rlhf(index: int, **changes: Any) -> dict[str, Any]:
    """A row with the columns that the hub's files have."""
    row = {
        "prompt": f"How do I do thing {index}?",
        "response_0": f"Do it like this, {index}.",
        "response_1": f"I cannot help with that, {index}.",
        "prompt_source": "Alpaca3-8B",
        "response_0_source": "Alpaca3-8B",
        "response_1_source": "Alpaca3-8B",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": {"Violence": True},
        "response_1_harm_category": {"Violence": False},
        "response_0_severity_level": 2,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 1,
        "response_0_sha256": "00",
        "response_1_sha256": "11",
    }
    return row | changes


def test_the_safer_response_is_chosen_and_the_better_one_if_asked(tmp_path: Path) -> None:
    file = lines(tmp_path / "train.jsonl", [safe_rlhf(0), safe_rlhf(1, better_response_id=1)])
    no, yes = [f"I cannot help with that, {i}." for i in range(2)], [f"Do it like this, {i}." for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(SafeRLHF(file).read()) == [(no[0], yes[0]), (no[1], yes[1])]
        assert texts(SafeRLHF(file, prefer="better").read()) == [(yes[0], no[0]), (no[1], yes[1])]
    assert SafeRLHF(file).read()[1].where == "train.jsonl[1]" or "train.jsonl" in SafeRLHF(file).read()[1].where


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"response_1": ""}, "without two answers"),
        ({"response_0": None}, "without two answers"),
        ({"response_0": "I  cannot help with that, 1."}, "with twice the same answer"),
        ({"safer_response_id": -1}, "with a tie instead of a label"),
        ({"safer_response_id": None}, "with a tie instead of a label"),
        ({"safer_response_id": 0}, "whose labels contradict each other"),
    ],
)
def test_rows_that_are_no_pairs_are_counted_and_told(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    file = lines(tmp_path / "train.jsonl", [safe_rlhf(0), safe_rlhf(1, **changes), safe_rlhf(2)])
    with pytest.raises(
        ValueError, match=rf"1 of 3 rows cannot be learnt from as pairs:\n1 {kind}\n  - train.jsonl\[1\]"
    ):
        SafeRLHF(file).read()
    with pytest.warns(DataWarning, match=f"1 {kind}"):
        assert len(SafeRLHF(file, faulty="skip").read()) == 2


def test_labels_of_a_column_with_gaps_are_numbers_with_a_point(tmp_path: Path) -> None:
    """As parquet has a column of whole numbers in which some are missing."""
    rows = [safe_rlhf(0, safer_response_id=1.0), safe_rlhf(1)]
    records = SafeRLHF(str(lines(tmp_path / "train.jsonl", rows))).read()
    assert [record.rejected for record in records] == [f"Do it like this, {index}." for index in range(2)]


def test_two_unsafe_answers_are_told_and_kept_or_left_out(tmp_path: Path) -> None:
    unsafe = safe_rlhf(1, is_response_1_safe=False, response_1="Do it otherwise.")
    file = lines(tmp_path / "train.jsonl", [safe_rlhf(0), unsafe, safe_rlhf(2)])
    with pytest.warns(DataWarning, match="1 of 3 pairs have two unsafe answers; the chosen one is unsafe too"):
        assert texts(SafeRLHF(file).read())[1] == ("Do it otherwise.", "Do it like this, 1.")
    with pytest.warns(DataWarning, match="1 of 3 pairs have two unsafe answers, and are left out"):
        assert len(SafeRLHF(file, both_unsafe="skip").read()) == 2


def test_a_file_of_another_schema_is_told(tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ValueError, match="'safer_response_id' is missing; expected rows of PKU-SafeRLHF"):
        SafeRLHF(file).read()
    with pytest.raises(ValueError, match="there is no SafeRLHF file"):
        SafeRLHF(str(tmp_path / "none-*.jsonl")).read()
