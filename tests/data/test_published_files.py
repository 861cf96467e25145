"""What readers of published data share: files where they may lie, texts and categories of rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpa_lightning.data import published_files


def test_the_first_place_that_exists_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b.json").touch()
    (tmp_path / "a.json").mkdir()
    places = [tmp_path / name for name in ("none.json", "a.json", "b.json")]
    assert published_files.find_file(places, "annotations") == places[2]
    assert published_files.find_folder(places, "images") == places[1]
    with pytest.raises(ValueError, match=r"there is no set of images; looked for '.*none\.json', '.*b\.json'"):
        published_files.find_folder([places[0], places[2]], "set of images")


@pytest.mark.parametrize("value", [None, 3, "", " \n"])
def test_what_is_no_text_is_named(value: Any) -> None:
    assert published_files.text_of({"question": " Why? "}, "question", "row 1") == "Why?"
    with pytest.raises(ValueError, match=r"row 1: 'question' is .*; expected a text"):
        published_files.text_of({"question": value}, "question", "row 1")
    with pytest.raises(ValueError, match=r"row 1: 'question' is missing; the row has \['id'\]"):
        published_files.text_of({"id": 1}, "question", "row 1")


def test_categories_are_texts_or_numbers_and_may_be_missing() -> None:
    columns = {"domain": "Domain", "level": "Level", "source": "Source"}
    found = published_files.categories_of({"Domain": " fraud ", "Level": 3, "Source": ""}, columns, "row 1")
    assert found == {"domain": "fraud", "level": "3"}
    for value in (True, 1.5, ["fraud"]):
        with pytest.raises(ValueError, match=r"row 1: 'Domain' is .*; expected the name of a category"):
            published_files.categories_of({"Domain": value}, columns, "row 1")


def test_images_stand_in_front_of_the_prompt_and_must_be_as_many_as_their_marks() -> None:
    record = published_files.conversation(7, "Why?", ["a.png", "b.png"], "So.", where="row 1")
    assert record.id == "7" and [part["type"] for part in record.messages[0]["content"]] == ["image", "image", "text"]
    assert record.messages[1]["role"] == "assistant" and record.source == "row 1"
    with pytest.raises(ValueError, match="row 1"):
        published_files.conversation(7, "<image>\n<image>\nWhy?", ["a.png"], where="row 1")


def test_options_are_compared_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="SimpleNamespace: ask is 'leter'; expected one of letter, text"):
        published_files.check_option(SimpleNamespace(ask="leter"), "ask", ("letter", "text"))
