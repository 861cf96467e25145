"""The page of a study."""

from pathlib import Path

import pytest
from markupsafe import escape
from support.html_structure import HOSTILE, Structure

from hpa_lightning.report import Table
from hpa_lightning.report.study_page import Heading, Origin, TextBlock, TitledTable, study_html, write_page


def test_text_of_a_study_is_marked_and_stays_text() -> None:
    blocks = [
        Heading(2, HOSTILE),
        TextBlock(f"Keep `{HOSTILE}`, **not `W` alone**.\n\n{HOSTILE} a * b ** c"),
        TitledTable(Table([HOSTILE], [[HOSTILE]]), HOSTILE),
        Origin(1, 1, "0", (HOSTILE,), (HOSTILE,), f"{HOSTILE}\nhpa-lightning `x`", (HOSTILE,)),
    ]
    page = study_html(HOSTILE, HOSTILE, blocks)
    tags = [tag[0] for tag in Structure(page).tags]
    assert HOSTILE not in page and "script" not in tags
    assert tags.count("code") == 4 and tags.count("strong") == 2 and tags.count("p") == 6
    assert "<strong>not <code>W</code> alone</strong>" in page and "a * b ** c</p>" in page
    assert f"by <code>{escape(HOSTILE)}</code> and <code>hpa-lightning `x`</code>." in page


@pytest.mark.parametrize(
    ("columns", "explained"), [(["Method", "Empty %", "Cut %"], True), (["Method", "AP %"], False)]
)
def test_what_is_explained_is_in_a_table(columns: list[str], explained: bool, tmp_path: Path) -> None:
    blocks = [TitledTable(Table(columns, []), "Scores")]
    paths = write_page(lambda folder: blocks, tmp_path, "results", "Title", "")
    for page in ("markdown", "html"):
        text = paths[page].read_text()
        assert ("had not ended when the limit" in text) == explained
        assert ("hold no letter" in text) == explained
        assert "name no option" not in text and "mean score over all tasks" in text
