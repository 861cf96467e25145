"""The page on two studies, from planted scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.study_cells import cell, two_tasks

from hpa_lightning.report import agreement_page, rank_agreement
from hpa_lightning.report.agreement_measures import MethodPair
from hpa_lightning.report.agreement_page import (
    AgreementSection,
    agreement_table,
    agreement_text,
    notes,
    rank_table,
    write_agreement,
)
from hpa_lightning.results.run_results import RunResults


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        agreement_page, "rank_agreement", lambda one, other: rank_agreement.rank_agreement(one, other, draws=30)
    )


def pair(
    title: str, kept: tuple[float, float], asr: tuple[float, float], seeds: tuple[int, int] = (2, 1)
) -> MethodPair:
    """AP is 40 % plus half of `kept` in percent."""
    first, second = (
        [cell(title.lower(), seed, two_tasks(0.9, 0.8, kept[side], asr[side])) for seed in range(seeds[side])]
        for side in (0, 1)
    )
    return MethodPair(title, first, second)


def section(*pairs: MethodPair) -> AgreementSection:
    return AgreementSection("old", "new", pairs, ["new: Gone"], "hpa-lightning study agree x.yaml")


FOUR = (
    pair("A", (0.8, 0.2), (0.1, 0.1)),
    pair("B", (0.6, 0.8), (0.2, 0.2)),
    pair("C", (0.4, 0.6), (0.3, 0.3), (1, 1)),
    pair("D", (0.2, 0.4), (0.4, 0.5)),
)


def test_table_of_planted_orders() -> None:
    table = agreement_table(section(*FOUR))
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["AP", "BWT", "MASR", "AP - MASR", "AP - MASR - over-refusal"]
    # A is first on the old and last on the new one, the others keep their order: 3 pairs of 6 agree.
    assert rows["AP"][1:3] == [4, 0.0] and rows["AP"][6] == "A 1 → 4; B 2 → 1; C 3 → 2"
    assert rows["MASR"][2] == 1.0 and rows["MASR"][6] == "–" and float(rows["MASR"][5]) == pytest.approx(2 / 24)
    ranked = {row[0]: row for row in rank_table(section(*FOUR)).rows}
    assert ranked["A"][:5] == ["A", "2, 1", "1 → 4", "1 → 4", "1 → 1"] and ranked["C"][1] == "1, 1"
    said = "\n".join(notes(section(*FOUR)))
    assert "A single seed on old: C. The interval" in said and "A single seed on new: all methods." in said
    assert "No tau for Learnt: all methods have the same value" in said and "No tau for Over-refusal" in said


def test_page_and_picture(tmp_path: Path) -> None:
    small = AgreementSection("old", "newest", FOUR[:2], ["newest: Gone"])
    paths = write_agreement([section(*FOUR), small], tmp_path, "Title", "Words.")
    page = paths["markdown"].read_text()
    assert page.startswith("# Title\n\nWords.") and "| AP | 4 | 0.00 |" in page
    assert "**Not run.** new: Gone." in page and "    hpa-lightning study agree x.yaml" in page
    assert "Runs of old: 7, of 4 methods; seeds 0, 1." in page and "Commit: `0123456`." in page
    assert "2 methods have finished runs on both; 4 are needed" in page and "**Not run.** newest: Gone." in page
    assert "(figures/old-and-new.png)" in page and "A single seed on new: all methods" in page
    with Image.open(paths["old-and-new"]) as image:
        assert image.size[0] > 1500
    assert "Kendall" in paths["html"].read_text()


def test_titles_that_make_one_file_name_have_a_figure_each(tmp_path: Path) -> None:
    sections = [AgreementSection(title, "new", FOUR) for title in ("A b", "A-b", "c")]
    write_agreement(sections, tmp_path, "Order")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"1-a-b-and-new.png", "2-a-b-and-new.png", "c-and-new.png"}


def test_a_figure_that_one_method_lacks_is_compared_without_it() -> None:
    bare = MethodPair("E", [cell("e", 0, two_tasks(0.9, 0.8, 0.1, float("nan")))], FOUR[0].second)
    found = section(*FOUR, bare)
    rows = {row[0]: row for row in agreement_table(found).rows}
    assert rows["AP"][1] == 5 and rows["MASR"][1] == 4
    assert "MASR was not measured on both: E." in notes(found)
    assert {row[0]: row for row in rank_table(found).rows}["E"][4] == "–"


def test_nothing_to_compare_is_an_error_that_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"old and new: 3 methods .*; 4 are needed .* Left out: new: Gone"):
        agreement_text([section(*FOUR[:3])])
    same = [pair(title, (0.5, 0.5), (0.1, 0.1)) for title in "ABCD"]
    with pytest.raises(ValueError, match="No tau for AP: all methods have the same value on one of them"):
        write_agreement([section(*same)], tmp_path, "")
    assert "newest" in agreement_text([section(*FOUR), AgreementSection("old", "newest", ())])


@pytest.mark.parametrize("how", ["text", "page"])
def test_runs_of_a_side_were_scored_alike(how: str, tmp_path: Path) -> None:
    """On the terminal as on the page."""

    def other(**change: object) -> AgreementSection:
        records = [{**one, **change} if one.get("set") == "attack" else one for one in FOUR[1].first[0].run.records]
        changed = MethodPair("B", [cell("b", 0, RunResults(records))], FOUR[1].second)
        first = MethodPair("A", [cell("a", 0, RunResults(numbered))], FOUR[0].second)
        return section(first, changed, *FOUR[2:])

    def show(section: AgreementSection) -> None:
        agreement_text([section]) if how == "text" else write_agreement([section], tmp_path, "")

    numbered = [{**one, "n": 9} if one.get("set") == "attack" else one for one in FOUR[0].first[0].run.records]
    with pytest.raises(ValueError, match=r"B \(seed 0\) and A \(seed 0\) cannot be compared: metrics .* \['attack'\]"):
        show(other(metric="other"))
    with pytest.warns(UserWarning, match=r"other numbers of questions of 'attack': 9 in A \(seed 0\), 10 in B"):
        show(other(n=10))
