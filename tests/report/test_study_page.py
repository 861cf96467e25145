"""The page of a study."""

from markupsafe import escape
from support.html_structure import HOSTILE, Structure

from hpa_lightning.report import Table
from hpa_lightning.report.study_page import Heading, Origin, TextBlock, TitledTable, study_html


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
