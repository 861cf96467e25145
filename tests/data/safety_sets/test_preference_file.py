"""Files of preference pairs: every form of a pair, pictures, broken rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pair_files import lines, texts
from support.safety_files import encoded

from hpa_lightning.data import EncodedImage, PreferenceFile

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
