"""Records: what is checked in them, and how their pictures are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_mllms import picture

from hpa_lightning.data import Record
from hpa_lightning.data.record import assistant_turn, check_record, open_image, user_turn


def test_choices_are_checked_and_keyword_only() -> None:
    with pytest.raises(TypeError):
        Record("1", user_turn("?"), (), ("a",), "q[0]", ("a", "b"))  # type: ignore[misc]
    assert Record("1", user_turn("?"), (), ("a",), "q[0]").where == "q[0]"
    check_record(Record("1", user_turn("?"), answers=("a",), choices=("a", "b")))
    check_record(Record("1", (*user_turn("?"), *assistant_turn("b")), choices=("a", "b")))
    with pytest.raises(ValueError, match=r"^q\[0\]: the answer 'c' is none of the choices \('a', 'b'\)"):
        check_record(Record("1", user_turn("?"), (), ("c",), "q[0]", choices=("a", "b")))
    with pytest.raises(ValueError, match=r"the answer 'c' is none of the choices"):
        check_record(Record("1", (*user_turn("?"), *assistant_turn("c")), choices=("a", "b")))
    for choices in (("a",), ("a", " ")):
        with pytest.raises(ValueError, match=r"the choices are .*; expected two or more texts"):
            check_record(Record("1", user_turn("?"), answers=("a",), choices=choices))


def test_images_are_opened_as_rgb_or_named(tmp_path: Path) -> None:
    reference = np.asarray(picture(1))
    picture(1).save(tmp_path / "x.png")
    picture(1).convert("RGBA").save(tmp_path / "alpha.png")
    for image in (tmp_path / "x.png", str(tmp_path / "alpha.png"), picture(1), reference):
        opened = open_image(image, "r")
        assert isinstance(opened, Image.Image) and opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), reference)
    with pytest.raises(ValueError, match=r"t\.json\[4\]: image file '.*gone\.png' does not exist"):
        open_image(str(tmp_path / "gone.png"), "t.json[4]")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot be read"):
        open_image(tmp_path / "text.png", "r")
    with pytest.raises(ValueError, match=r"float64 and shape \(4, 4\); expected uint8"):
        open_image(np.zeros((4, 4)), "r")


def test_source_does_not_make_records_differ() -> None:
    assert Record("1", user_turn("a"), source="x[0]") == Record("1", user_turn("a"), source="y[7]")
