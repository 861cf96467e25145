"""Preference pairs of the published schemas: PKU-SafeRLHF, SPA-VL, and the rows that TRL and LLaMA-Factory read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from support.safety_files import encoded, write_image

from hpa_lightning.data import SPAVL, DataWarning, EncodedImage, PreferenceFile, SafeRLHF
from hpa_lightning.data.record import check_pair, message_text


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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


def texts(records: list[Any]) -> list[tuple[str, str]]:
    for record in records:
        check_pair(record)
    return [(message_text(record.messages[-1]), record.rejected) for record in records]


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
        ({"safer_response_id": -1}, "with a tie in place of a label"),
        ({"safer_response_id": None}, "with a tie in place of a label"),
        ({"safer_response_id": 0}, "whose labels contradict each other"),
    ],
)
def test_rows_that_are_no_pairs_are_counted_and_told(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    file = lines(tmp_path / "train.jsonl", [safe_rlhf(0), safe_rlhf(1, **changes), safe_rlhf(2)])
    with pytest.raises(ValueError, match=rf"1 of 3 rows are no pairs to learn from:\n1 {kind}\n  - train.jsonl\[1\]"):
        SafeRLHF(file).read()
    with pytest.warns(DataWarning, match=f"1 {kind}"):
        assert len(SafeRLHF(file, faulty="skip").read()) == 2


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


def spa_vl(index: int, **changes: Any) -> dict[str, Any]:
    row = {"id": index, "image": f"images/{index}.png", "question": f"Is {index} wise?"}
    return row | {"chosen": f"It is not, {index}.", "rejected": f"It is, {index}."} | changes


def test_spa_vl_pairs(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "0.png", 0)
    file = lines(tmp_path / "train.jsonl", [spa_vl(0), spa_vl(1, rejected="It is not, 1."), spa_vl(2, chosen=None)])
    with pytest.raises(ValueError, match="2 of 3 rows are no pairs"):
        SPAVL(file, answer="pair").read()
    with pytest.warns(DataWarning, match="1 with twice the same answer"):
        (record,) = SPAVL(file, answer="pair", faulty="skip").read()
    assert texts([record]) == [("It is not, 0.", "It is, 0.")]
    assert record.images == (str(tmp_path / "images" / "0.png"),) and record.prompt == "Is 0 wise?"
    assert SPAVL(file, answer="rejected").read()[0].rejected == ""


MESSAGES = [{"role": "user", "content": "Is it wise?"}]
NO, YES = {"role": "assistant", "content": "No."}, {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is it wise?", "chosen": "No.", "rejected": "Yes."},
        {"question": "Is it wise?", "chosen": "No.", "rejected": "Yes."},
        {"prompt": MESSAGES, "chosen": [NO], "rejected": [YES]},
        {"prompt": MESSAGES, "chosen": [*MESSAGES, NO], "rejected": [*MESSAGES, YES]},
        {"chosen": [*MESSAGES, NO], "rejected": [*MESSAGES, YES]},
        {"conversations": [{"from": "human", "value": "Is it wise?"}], "chosen": {"from": "gpt", "value": "No."}}
        | {"rejected": {"from": "gpt", "value": "Yes."}},
    ],
)
def test_forms_of_a_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    (record,) = PreferenceFile(lines(tmp_path / "p.jsonl", [row])).read()
    assert texts([record]) == [("No.", "Yes.")] and record.prompt == "Is it wise?" and record.images == ()


def test_a_pair_with_pictures(tmp_path: Path) -> None:
    import base64

    address = "data:image/png;base64," + base64.b64encode(encoded(3)).decode()
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it wise?"}]}
    rows = [
        {"images": [address], "prompt": [user], "chosen": [NO], "rejected": [YES]},
        {"image": "a.png", "prompt": "<image>\nIs it wise?", "chosen": "No.", "rejected": "Yes."},
    ]
    first, second = PreferenceFile(lines(tmp_path / "p.jsonl", rows)).read()
    assert isinstance(first.images[0], EncodedImage) and first.images[0].data == encoded(3)
    assert second.images == (str(tmp_path / "a.png"),) and second.messages == first.messages


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [*MESSAGES, NO], "rejected": [{"role": "user", "content": "?"}, YES]}, "differ in the last turn"),
        ({"prompt": "a?", "chosen": [*MESSAGES, NO], "rejected": "Yes."}, "do not begin with the prompt's 1"),
        ({"prompt": MESSAGES, "chosen": "No.", "rejected": MESSAGES}, "end with a turn of the user"),
        ({"prompt": MESSAGES, "chosen": "No."}, "1 without two answers"),
        ({"prompt": 3, "chosen": "No.", "rejected": "Yes."}, "'prompt' is 3; expected a text or messages"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceFile(lines(tmp_path / "p.jsonl", [row])).read()
