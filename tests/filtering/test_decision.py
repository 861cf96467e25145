"""How the parts of a filter vote, and what becomes of records that were not assessed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.filtered_files import answers
from support.instruction_files import write_rows

from hpa_lightning.data import Record
from hpa_lightning.filtering import Assessment, FilterRule, Finding, HarmFilter, filter_data


class Scripted:
    """A part that says what the test wants, by the record's number."""

    def __init__(self, found: Mapping[int, Assessment]) -> None:
        self.found = {str(key): value.value for key, value in found.items()}

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        kinds = [self.found.get(str(int(record.id)), "harmless") for record in records]
        return [Finding(Assessment(kind), detail="it stammers" * (kind == "no verdict")) for kind in kinds]


H, N, U, NOTHING = Assessment.HARMFUL, Assessment.NO_VERDICT, Assessment.UNREADABLE, Assessment.NOTHING

PARTS: dict[str, HarmFilter] = {
    "a": Scripted({0: H, 1: H, 2: H, 5: N, 6: H}),
    "b": Scripted({0: H, 1: H, 3: H, 4: U, 6: NOTHING}),
    "c": Scripted({0: H, 6: N}),
}


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        (FilterRule(unreadable="drop"), [0, 1, 2, 3, 4, 5, 6]),
        (FilterRule(no_verdict="keep", unreadable="keep"), [0, 1, 2, 3, 6]),
        (FilterRule("all", no_verdict="keep", unreadable="keep"), [0]),
        (FilterRule("all", unreadable="keep"), [0, 5, 6]),
        (FilterRule("votes", 2, "keep", "keep"), [0, 1]),
        (FilterRule("votes", 3, "keep", "keep"), [0]),
    ],
)
def test_how_parts_combine(rule: FilterRule, dropped: list[int], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers())
    outcome = filter_data(path, PARTS, tmp_path / "out", rule=rule)
    assert [int(row["id"]) for row in json.loads(outcome.dropped.read_text())] == dropped
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert {row["Part"]: (row["Harmful"], row["by it alone"], row["No verdict"]) for row in counts["parts"]} == {
        "a": (4, 2, 1),
        "b": (3, 1, 0),
        "c": (1, 0, 1),
    }
    assert {row["Harmful by"]: row["Records"] for row in counts["overlaps"]} == {
        "a + b + c": 1,
        "a + b": 1,
        "a": 2,
        "b": 1,
    }
    assert counts["kept"] + counts["dropped"] == counts["records"] == 10


def test_what_could_not_be_told_is_never_harmless(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers())
    with pytest.raises(ValueError, match=r"train.json\[4\]: unreadable, says 'b'.*unreadable is 'stop'"):
        filter_data(path, PARTS, tmp_path / "out")
    # What was assessed until then is not lost, and what becomes of such a record can be said now.
    assert filter_data(path, PARTS, tmp_path / "out", rule=FilterRule(unreadable="keep")).counts.dropped == 6
    rule = FilterRule(no_verdict="stop", unreadable="keep")
    with pytest.raises(ValueError, match=r"train.json\[5\]: no verdict, says 'a': it stammers. .*no_verdict is 'stop'"):
        filter_data(path, PARTS, tmp_path / "other", rule=rule)
    silent = Scripted(dict.fromkeys(range(10), N))
    with pytest.raises(ValueError, match="the part 'mute' gave no verdict on any of the first 10 records"):
        filter_data(path, {"mute": silent}, tmp_path / "third")
