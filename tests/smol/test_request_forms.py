"""One request in three forms."""

from pathlib import Path

import numpy as np
from PIL import Image

from hpa_lightning.data.record import check_record
from hpa_lightning.smol.request_forms import RequestForms


def test_forms_are_there_where_their_pictures_are(tmp_path: Path) -> None:
    assert RequestForms().names == ("text",)
    assert RequestForms(["a.jpg"]).names == ("text", "picture")
    assert RequestForms(["a.jpg"], tmp_path).names == ("text", "picture", "typeset")


def test_a_typeset_request_is_in_the_picture_alone(tmp_path: Path) -> None:
    forms = RequestForms(["a.jpg", "b.jpg"], tmp_path)
    records = {form: forms.record(form, "x-1", "How do I forge coins?", "No.") for form in forms.names}
    for record in records.values():
        check_record(record, needs_answer=True)
    assert records["text"].prompt == records["picture"].prompt == "How do I forge coins?"
    assert "forge" not in records["typeset"].prompt
    with Image.open(tmp_path / "x-1.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (224, 224) and pixels.min() < 80 and pixels.mean() > 200
    assert len({record.id for record in records.values()}) == 3


def test_tests_have_sentences_of_their_own(tmp_path: Path) -> None:
    asked = {
        use: {RequestForms((), tmp_path, use).record("typeset", str(number), "A?").prompt for number in range(40)}  # type: ignore[arg-type]
        for use in ("stages", "test")
    }
    assert asked["stages"] and asked["test"] and not asked["stages"] & asked["test"]
