"""Study files: what is wrong in one is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.study_files import STUDY, write

from hpa_lightning.study import read_study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": {}}, r"unknown keys \['group'\]"),
        ({"groups": {"a": {"title": "A", "methods": ["none"], "seeds": [1]}}}, "no method 'none'"),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "conditions": ["hot"]}}},
            "no condition 'hot'",
        ),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "reference": "sweep"}}},
            "reference 'sweep'",
        ),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "reference": ["plain", "none"]}}},
            "reference 'none'",
        ),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "x": {"setting": "p"}}}},
            "no method of it has the setting 'p'",
        ),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "curves": ["sweep"]}}},
            "curves names 'sweep'",
        ),
        ({"groups": {"a": {"title": "A", "methods": ["plain"]}}}, r"\['seeds'\] missing"),
        ({"groups": {"a": {"title": "A", "methods": "plain", "seeds": [1]}}}, "methods is 'plain'; expected a list"),
        ({"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": 5}}}, "seeds is 5; expected a list"),
        ({"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": "101"}}}, "seeds is '101'; expected a list"),
        ({"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": ["a"]}}}, "expected whole numbers"),
        ({"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1, 1]}}}, "expected each once"),
        ({"groups": {"a": {"title": "A", "methods": ["sweep", "sweep[p=2]"], "seeds": [1]}}}, r"'sweep\[p=2\]' twice"),
        ({"groups": {"a": {"title": "A", "methods": ["sweep[p=6]"], "seeds": [1]}}}, r"there are \['sweep\[p=2\]'"),
        ({"columns": ["a"]}, "columns: .* expected headings with lists of evaluation sets"),
        ({"columns": {"Text": "a"}}, "columns: Text is 'a'; expected a list of evaluation sets"),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "columns": {"Text": []}}}},
            "group 'a', columns: Text is",
        ),
        ({"title": 3}, r"study\.yaml: title is 3; expected a text"),
        ({"text": None}, r"study\.yaml: text is None; expected a text"),
        ({"methods": {"plain": {"title": False}}}, "method 'plain': title is False; expected a text"),
        (
            {"methods": {"()": {"title": "A"}}},
            r"methods: the name '\(\)'; expected a text without slashes, with a letter",
        ),
        ({"methods": {"a\0b": {"title": "A"}}}, "methods: the name .*; expected a text without slashes"),
        ({"conditions": {"c:d": {}}}, "conditions: the name 'c:d'; expected a text without slashes"),
        ({"conditions": {" ": {}}}, "conditions: the name ' '; expected a text without slashes"),
        ({"groups": {"a": {"title": 2, "methods": ["plain"], "seeds": [1]}}}, "group 'a': title is 2; expected a text"),
        (
            {"groups": {"a": {"title": "A", "methods": ["sweep"], "seeds": [1], "x": {"setting": "p", "label": 1}}}},
            "group 'a', x: label is 1; expected a text",
        ),
        ({"groups": None}, "groups: None; expected a mapping"),
        ({"methods": ["plain"]}, r"methods: \['plain'\]; expected a mapping"),
        ({"methods": {"sweep": {"title": "S", "grid": {"p": 5}}}}, "p is 5; expected a list of values"),
        ({"methods": {"sweep": {"title": "S", "grid": {"p": [1, 2]}}}}, "points of its grid are the same run"),
        ({"methods": {"sweep": {"title": "S", "callbacks": {"class_path": "a"}}}}, "callbacks is .* expected a list"),
        (
            {
                "methods": {"sweep": {"title": "S", "config": {"act": "${p}"}, "grid": {"p": ["a", "b"]}}},
                "groups": {"a": {"title": "A", "methods": ["sweep"], "seeds": [1], "x": {"setting": "p"}}},
            },
            "'p' has the value 'a'; expected numbers",
        ),
        (
            {
                "methods": {"sweep": {"title": "S", "config": {"act": "${p}"}, "grid": {"p": [0, 1]}}},
                "groups": {
                    "a": {
                        "title": "A",
                        "methods": ["sweep"],
                        "seeds": [1],
                        "x": {"setting": "p", "logarithmic": True},
                    }
                },
            },
            "'p' has the value 0, which a logarithmic axis cannot show",
        ),
        ({"columns": {"MASR": ["a"]}}, "columns: the tables have a column 'MASR' already"),
        (
            {"groups": {"a": {"title": "A", "methods": ["plain"], "seeds": [1], "columns": {"over-refusal": ["b"]}}}},
            "group 'a', columns: the tables have a column 'over-refusal' already",
        ),
        ({"methods": {"plain": {"title": "${q}"}, "sweep": STUDY["methods"]["sweep"]}}, r"nothing fills \$\{q\}"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(write(tmp_path, **changes))


def test_a_study_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("title: [")
    with pytest.raises(ValueError, match=r"study\.yaml is not valid YAML"):
        read_study(tmp_path / "study.yaml")


def test_titles_of_a_value_are_texts_and_names_in_any_script_are_folders(tmp_path: Path) -> None:
    methods = {"方法 1": {"title": "${p}", "config": {"act": "${p}"}, "grid": {"p": [1, 2]}}}
    groups = {"a": {"title": "A", "methods": ["方法 1"], "seeds": [1]}}
    cells = read_study(write(tmp_path, methods=methods, groups=groups)).cells()
    assert [cell.title for cell in cells][:2] == ["1", "2"]
    assert cells[0].key == "clean/方法-1-p-1/seed_1"


def test_a_cell_of_six_tasks_on_smol_keeps_checkpoints_and_shorter_ones_none() -> None:
    study = read_study(Path(__file__).parents[2] / "studies" / "smol.yaml")
    kept: dict[str, set[bool]] = {}
    for group in study.groups:
        for cell in group.cells:
            kept.setdefault(cell.condition, set()).add(cell.config["trainer"]["enable_checkpointing"])
    assert kept.pop("six-tasks") == {True}
    assert kept and set().union(*kept.values()) == {False}


def test_unknown_group(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no group 'third'"):
        read_study(write(tmp_path)).cells(["third"])


@pytest.mark.parametrize("name", ["nano", "adaptation", "smol", "smol_adaptation"])
def test_the_studies_of_the_repository_are_whole(name: str) -> None:
    study = read_study(Path(__file__).parents[2] / "studies" / f"{name}.yaml")
    assert study.groups


def test_the_study_on_smol_gives_every_method_the_same_small_budget() -> None:
    """Two settings of each on the development seed, as HUSH's two pairs of shares; plain tuning has none."""
    study = read_study(Path(__file__).parents[2] / "studies" / "smol.yaml")
    groups = {group.name: group for group in study.groups}
    tuned = {cell.method for cell in groups["tuning"].cells} - {"sequential"}
    counts = Counter(point.partition("[")[0].replace("hpa-paper", "hpa-post") for point in tuned)
    assert set(counts.values()) == {2} and len(counts) >= 10
    hush = {cell.method for cell in groups["refusal-inputs"].cells if "null-space-refusals" in cell.method}
    assert len(hush) == 2 and {cell.seed for cell in groups["refusal-inputs"].cells} == {100}
    seeds = {name: {cell.seed for cell in group.cells} for name, group in groups.items()}
    assert all(seeds[name] == {100} for name in ("alone", "regime", "tuning"))
    assert all(seeds[name] == {101, 102, 103} for name in ("comparison", "decisions", "injection"))
