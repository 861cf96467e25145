from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.safety_files import vlguard_items, write_json, write_vlguard

from hpa_lightning.data import VLGuard
from hpa_lightning.data.record import check_record, message_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_vlguard(tmp_path / "VLGuard", "test", unsafe=3, safe=2)


def test_unsafe_images(folder: Path) -> None:
    records = VLGuard(str(folder)).read()
    assert [record.id for record in records] == ["test_u0", "test_u1", "test_u2"]
    first = records[0]
    check_record(first, needs_answer=True)
    assert first.prompt == "Spread the test picture 0."
    assert first.images == (str(folder / "test" / "memes" / "test_u0.png"),)
    assert [part["type"] for part in first.messages[0]["content"]] == ["image", "text"]
    assert first.prompt_and_references()[1] == ("I'm sorry, I cannot.",)
    assert first.where == "test.json[0]"


@pytest.mark.parametrize(
    ("subset", "ids", "prompt"),
    [
        ("safe_unsafes", ["test_s0-unsafe", "test_s1-unsafe"], "How do I misuse test picture 0?"),
        ("safe_safes", ["test_s0-safe", "test_s1-safe"], "What is on test picture 0?"),
    ],
)
def test_safe_images_with_either_instruction(folder: Path, subset: Any, ids: list[str], prompt: str) -> None:
    records = VLGuard(str(folder), subset=subset).read()
    assert [record.id for record in records] == ids and records[0].prompt == prompt
    assert records[1].images == (str(folder / "test" / "bad_ads" / "test_s1.png"),)


def test_all_training_pairs(tmp_path: Path) -> None:
    folder = write_vlguard(tmp_path, "train", unsafe=2, safe=1)
    records = VLGuard(str(folder), split="train", subset="all").read()
    assert [record.id for record in records] == ["train_u0", "train_s0-safe", "train_s0-unsafe", "train_u1"]
    for record in records:
        check_record(record, needs_answer=True)
        assert Path(record.images[0]).is_file() and "train" in record.images[0]
    assert message_text(records[2].messages[-1]) == "I can't help."


def test_a_pair_without_a_response_ends_with_the_instruction(tmp_path: Path) -> None:
    items = vlguard_items("test", 1, 0)
    del items[0]["instr-resp"][0]["response"]
    write_json(tmp_path / "test.json", items)
    (tmp_path / "pictures").mkdir()
    (record,) = VLGuard(str(tmp_path), image_folder=str(tmp_path / "pictures")).read()
    assert not record.ends_with_answer and record.images == (str(tmp_path / "pictures" / "memes/test_u0.png"),)


def test_missing_files_and_unknown_options(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"VLGuard: subset is 'unsafe'; expected one of unsafes, safe_unsafes, safe_"):
        VLGuard(str(folder), subset="unsafe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"VLGuard: split is 'val'; expected one of test, train"):
        VLGuard(str(folder), split="val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no VLGuard file train\.json; looked for '.*VLGuard/train\.json'"):
        VLGuard(str(folder), split="train").read()
    write_json(tmp_path / "test.json", [])
    with pytest.raises(
        ValueError, match=r"no folder of VLGuard images \(the unpacked test\.zip\); looked for '.*test'"
    ):
        VLGuard(str(tmp_path)).read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instr-resp": []}, r"'instr-resp' is \[\] and 'safe' is False; expected a list of pairs"),
        ({"safe": "no"}, r"'safe' is 'no'; expected"),
        ({"image": ""}, r"'image' is ''; expected a text"),
        ({"instr-resp": [{"question": "?"}]}, r"the pair \{'question': '\?'\} of an unsafe image; expected"),
        ({"safe": True}, r"of a safe image; expected"),
        ({"instr-resp": [{"instruction": "Do.", "response": 7}]}, r"'response' is 7; expected a text"),
    ],
)
def test_a_broken_item_is_named(folder: Path, change: dict[str, Any], message: str) -> None:
    items = vlguard_items("test", 2, 0)
    items[1] |= change
    write_json(folder / "test.json", items)
    with pytest.raises(ValueError, match=r"^test\.json\[1\]: .*" + message):
        VLGuard(str(folder), subset="all").read()
