from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.study import read_study

STUDY: dict[str, Any] = {
    "title": "A study",
    "base": {
        "seed_everything": "${seed}",
        "data": {"init_args": {"seed": "${seed}", "steps": 3}},
        "trainer": {"callbacks": [{"class_path": "Base", "init_args": {"method": "${title}"}}], "logger": "${folder}"},
    },
    "conditions": {"clean": None, "dirty": {"data": {"init_args": {"ratio": 0.1}}}},
    "methods": {
        "plain": {"title": "Plain"},
        "sweep": {
            "title": "Sweep at ${p} %",
            "grid": {"p": [2, 5.5]},
            "callbacks": [{"class_path": "Method", "init_args": {"p": "${p}", "note": "p is ${p}"}}],
            "config": {"data": {"init_args": {"steps": 7}}},
        },
    },
    "groups": {
        "first": {"title": "First", "methods": ["plain", "sweep"], "seeds": [1, 2], "reference": "plain"},
        "second": {
            "title": "Second",
            "methods": ["sweep[p=2]"],
            "conditions": ["clean"],
            "seeds": [2, 3],
            "x": {"setting": "p"},
        },
    },
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path


def test_cells_are_whole_configurations(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    cells = {cell.key: cell for cell in study.cells()}
    cell = cells["dirty/sweep-p-2/seed_1"]
    assert (cell.method, cell.title, cell.condition, cell.seed) == ("sweep[p=2]", "Sweep at 2 %", "dirty", 1)
    assert cell.config_for(tmp_path / "here") == {
        "seed_everything": 1,
        "data": {"init_args": {"seed": 1, "steps": 7, "ratio": 0.1}},
        "trainer": {
            "callbacks": [
                {"class_path": "Base", "init_args": {"method": "Sweep at 2 %"}},
                {"class_path": "Method", "init_args": {"p": 2, "note": "p is 2"}},
            ],
            "logger": str(tmp_path / "here"),
        },
    }
    assert cells["clean/plain/seed_1"].config_for(tmp_path)["data"] == {"init_args": {"seed": 1, "steps": 3}}


def test_a_cell_of_two_groups_is_one_cell(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    keys = [cell.key for cell in study.cells()]
    assert len(keys) == len(set(keys)) == 2 * 3 * 2 + 1
    assert len(study.cells(["first"])) == 12
    assert [cell.key for cell in study.cells(["second"])] == ["clean/sweep-p-2/seed_2", "clean/sweep-p-2/seed_3"]
    assert [cell.seed for cell in study.cells(["first"])] == [1] * 6 + [2] * 6, "whole seeds first"


def test_the_digest_is_of_what_decides_the_outcome(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        return next(c for c in read_study(write(tmp_path, **changes)).cells() if c.key == "clean/plain/seed_1").digest

    before = digest()
    assert digest(methods={**STUDY["methods"], "plain": {"title": "Renamed"}}) == before
    changed = {"title": "Plain", "config": {"data": {"init_args": {"steps": 4}}}}
    assert digest(methods={**STUDY["methods"], "plain": changed}) != before


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


def test_unknown_group(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no group 'third'"):
        read_study(write(tmp_path)).cells(["third"])
