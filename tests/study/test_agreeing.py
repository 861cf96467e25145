"""Two studies compared, from their stores and archives to the page."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.cli import main
from hpa_lightning.report import agreement_page
from hpa_lightning.report.rank_agreement import rank_agreement
from hpa_lightning.results.result_file import ResultWriter
from hpa_lightning.study import Store, read_study
from hpa_lightning.study.agreeing import agreement_sections
from hpa_lightning.study.pairs_file import read_pairs

SHIPPED = Path(__file__).parents[2] / "studies" / "nano_smol.yaml"
METHODS = {"a": 0.9, "b": 0.7, "c": 0.5, "d": 0.3}  # score on the only task
SWAPPED = {"a": 0.7, "b": 0.9, "c": 0.5, "d": 0.3}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_page, "rank_agreement", partial(rank_agreement, draws=20))


def study(folder: Path, name: str, scores: dict[str, float], not_run: tuple[str | tuple[str, int], ...] = ()) -> Path:
    """A study with two seeds of each method, of which some, or one seed of some, are not run."""
    content = {
        "base": {"seed": "${seed}"},
        "methods": {method: {"title": method.upper(), "config": {"x": method}} for method in scores},
        "conditions": {"clean": {}, "other": {"y": 1}},
        "groups": {
            "all": {"title": "All", "methods": list(scores), "seeds": [1, 2], "conditions": ["clean"]},
            "few": {"title": "Few", "methods": ["a"], "seeds": [1], "conditions": ["other"]},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    store = Store(folder / name)
    for cell in read_study(path).cells(["all"]):
        if cell.method in not_run or (cell.method, cell.seed) in not_run:
            continue
        writer = ResultWriter(store.folder(cell) / "results.jsonl")
        sets = [{"name": "t", "kind": "task"}]
        writer.write(
            {"event": "run", "method": cell.title, "seed": cell.seed, "tasks": ["t"], "sets": sets, "commit": "c0ffee1"}
        )
        score = {"event": "score", "set": "t", "kind": "task", "metric": "m", "n": 10}
        writer.write({**score, "step": 0, "after": "t", "score": scores[cell.method] + cell.seed / 100})
        store.finish(cell, 1.0, 1)
    return path


def pairs_file(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        name: {"study": f"{name}.yaml", "store": name, "runs": [{"title": name, "condition": "clean"}]}
        for name in ("first", "second")
    }
    content["pairs"] = [{"title": f"Method {key}", "first": key, "second": key} for key in METHODS]
    path = folder / "pairs.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_the_command_prints_and_writes_what_the_stores_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path, "first", METHODS), study(tmp_path, "second", SWAPPED)
    path = pairs_file(tmp_path)
    main(["study", "agree", str(path)])
    printed = capsys.readouterr().out
    # Of six pairs of methods one is the other way round.
    assert re.search(r"^AP +4 +0\.67 .* 0\.333 +Method a 1 → 2; Method b 2 → 1$", printed, re.M), printed
    assert "agreement.md" not in printed
    main(["study", "agree", str(path), "--output", str(tmp_path / "page")])
    page = (tmp_path / "page" / "agreement.md").read_text()
    assert "| AP | 4 | 0.67 |" in page and "`c0ffee1`" in page and "Runs of first: 8, of 4 methods; seeds 1, 2." in page
    assert f"    hpa-lightning study agree {path} --output {tmp_path / 'page'}" in page
    assert (tmp_path / "page" / "agreement.html").is_file()
    assert (tmp_path / "page" / "figures" / "first-and-second.png").is_file()


def test_what_is_not_run_is_left_out_by_name(tmp_path: Path) -> None:
    five = {**METHODS, "e": 0.1}
    study(tmp_path, "first", five, not_run=("e",)), study(tmp_path, "second", five)
    (section,) = agreement_sections(
        read_pairs(
            pairs_file(tmp_path, pairs=[{"title": f"Method {key}", "first": key, "second": key} for key in five])
        ),
        "pairs.yaml",
    )
    assert [pair.title for pair in section.pairs] == [f"Method {key}" for key in METHODS]
    assert section.left_out == ["first: Method e"]
    assert [(cell.method, cell.seed) for cell in section.pairs[0].first] == [("a", 1), ("a", 2)]


def test_methods_are_compared_with_the_seeds_that_all_of_them_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method that was not run with the worse seed would otherwise rank before one that was."""
    study(tmp_path, "first", METHODS), study(tmp_path, "second", METHODS, not_run=(("a", 2), ("d", 2)))
    path = pairs_file(tmp_path)
    (section,) = agreement_sections(read_pairs(path), path)
    assert [[cell.seed for cell in pair.first] for pair in section.pairs] == [[1, 2]] * 4
    assert [[cell.seed for cell in pair.second] for pair in section.pairs] == [[1]] * 4
    said = (
        "second: Compared with the seeds that all of these methods have, 1; "
        "left out are runs that some of them have with 2."
    )
    assert section.seeds == [said]
    main(["study", "agree", str(path), "--output", str(tmp_path / "page")])
    assert said in capsys.readouterr().out and said in (tmp_path / "page" / "agreement.md").read_text()


def test_without_a_common_seed_all_count_and_it_is_said(tmp_path: Path) -> None:
    study(tmp_path, "first", METHODS), study(tmp_path, "second", METHODS, not_run=(("a", 2), ("d", 1)))
    (section,) = agreement_sections(read_pairs(path := pairs_file(tmp_path)), path)
    assert [[cell.seed for cell in pair.second] for pair in section.pairs] == [[1], [1, 2], [1, 2], [2]]
    assert section.seeds[0].startswith("second: The methods have no seed in common")


def test_seeds_and_groups_narrow_the_runs(tmp_path: Path) -> None:
    study(tmp_path, "first", METHODS), study(tmp_path, "second", SWAPPED)
    runs = [
        {"title": "one", "condition": "clean", "seeds": [2]},
        {"title": "none", "condition": "other", "groups": ["few"]},
    ]
    path = pairs_file(tmp_path, first={"study": "first.yaml", "store": "first", "runs": runs})
    one, none = agreement_sections(read_pairs(path), path)
    assert {cell.seed for pair in one.pairs for cell in pair.first} == {2}
    assert none.pairs == [] and none.left_out == ["none: Method a; Method b; Method c; Method d"]
    assert "--groups few" in none.command and "--groups" not in one.command


def first_side(store: str = "first", **runs: Any) -> dict[str, Any]:
    return {"first": {"study": "first.yaml", "store": store, "runs": [{"title": "t", "condition": "clean"} | runs]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [{"title": "x", "first": "a", "second": "aa"}]}, r"second\.yaml: no group has the method 'aa'"),
        (
            first_side(condition="dirty"),
            r"first\.yaml, t: no cell .* condition 'dirty'; there are \['clean', 'other'\]",
        ),
        (first_side(groups=["g"]), r"first\.yaml, t: the study has no group 'g'; its groups are \['all', 'few'\]"),
        (first_side("nowhere"), r"t and second: 0 methods have finished .* Left out: t: Method a; Method b"),
        ({"first": {"study": "none.yaml", "runs": [{"title": "t", "condition": "clean"}]}}, r"none\.yaml"),
    ],
)
def test_mistakes_are_told(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path, "first", METHODS), study(tmp_path, "second", SWAPPED)
    with pytest.raises(SystemExit):
        main(["study", "agree", str(pairs_file(tmp_path, **change))])
    assert re.search(message, capsys.readouterr().err)


def test_three_methods_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path, "first", METHODS, not_run=("d",)), study(tmp_path, "second", SWAPPED)
    with pytest.raises(SystemExit):
        main(["study", "agree", str(pairs_file(tmp_path))])
    told = capsys.readouterr().err
    assert "3 methods have finished runs on both; 4 are needed" in told and "first: Method d" in told


def test_options_of_one_study_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "agree", str(SHIPPED), "--archive", "x.jsonl"])
    assert "agree takes groups, archives and stores from its file" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The scores shown together")
def test_the_shipped_pairs_on_the_shipped_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no runs/ beside the archives
    sections = agreement_sections(read_pairs(SHIPPED), SHIPPED)
    assert [section.title for section in sections] == [
        f"nano, {one} tasks and smol, three tasks" for one in ("six", "three")
    ]
    for section in sections:
        absent = [title for entry in section.left_out for title in entry.split(": ", 1)[1].split("; ")]
        assert {pair.title for pair in section.pairs} | set(absent) == {
            pair.title for pair in read_pairs(SHIPPED).pairs
        }
    assert all(len(section.pairs) >= 10 and not section.problem for section in sections)
    assert not any(entry.startswith("nano") for entry in sections[0].left_out), "nano has all methods on six tasks"
    text = agreement_page.agreement_text(sections)
    assert re.search(r"^MASR +\d+ +-?[01]\.\d\d", text, re.M)
