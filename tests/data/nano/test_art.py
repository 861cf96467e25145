"""The pixel font and the icons are complete, and each is drawn in its own way."""

from __future__ import annotations

import string

from hpa_lightning.data.nano.art import FONT_ROWS, ICON_ART, PERSON_ART
from hpa_lightning.data.nano.lexicon import ICONS


def test_every_letter_has_five_rows_of_three_and_looks_like_no_other() -> None:
    font = {line.split()[0]: tuple(line.split()[1:]) for line in FONT_ROWS.strip().splitlines()}
    assert list(font) == list(string.ascii_lowercase)
    assert all(
        len(rows) == 5 and all(len(row) == 3 and set(row) <= {"0", "1"} for row in rows) for rows in font.values()
    )
    assert len(set(font.values())) == 26


def test_every_icon_of_the_lexicon_is_drawn_on_one_grid() -> None:
    assert set(ICONS) <= set(ICON_ART)
    for name, art in {**ICON_ART, "person": PERSON_ART}.items():
        rows = art.strip("\n").splitlines()
        assert len({len(row) for row in rows}) == 1, name
        assert set("".join(rows)) == {"#", "."}, name
    assert len(set(ICON_ART.values())) == len(ICON_ART)
