"""What does not count in the comparison of two studies is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.study import Store, read_study
from hpa_lightning.study.agreeing import agreement_sections
from hpa_lightning.study.pairs_file import read_pairs

METHODS = ("a", "b", "c", "d")


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    """Two studies whose cells are all finished, and the pairs of their methods."""
    for name in ("first", "the second"):
        content = {
            "base": {"seed": "${seed}"},
            "methods": {method: {"title": method.upper(), "config": {"x": method}} for method in METHODS},
            "groups": {"all": {"title": "All", "methods": list(METHODS), "seeds": [1, 2]}},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        store = Store(tmp_path / name)
        for number, cell in enumerate(read_study(path).cells()):
            sets = [{"name": "t", "kind": "task"}, {"name": "harm", "kind": "safety"}]
            events: list[dict[str, Any]] = [{"event": "run", "method": "m", "tasks": ["t"], "sets": sets}]
            scores = {"step": 0, "after": "t", "metric": "m", "score": number / 10}
            events += [{"event": "score", "set": item["name"], "kind": item["kind"], **scores} for item in sets]
            folder = store.folder(cell)
            folder.mkdir(parents=True)
            (folder / "results.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
            store.finish(cell, 1.0, 1)
    return {
        **{
            key: {"study": f"{name}.yaml", "store": name, "runs": [{"title": key, "condition": "default"}]}
            for key, name in (("first", "first"), ("second", "the second"))
        },
        "pairs": [{"title": f"Method {method}", "first": method, "second": method} for method in METHODS],
    }


def write(folder: Path, pairs: dict[str, Any]) -> Path:
    path = folder / "pairs.yaml"
    path.write_text(yaml.safe_dump(pairs))
    return path


def test_a_run_without_a_number_is_left_out_by_name(pairs: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "first" / "default" / "b" / "seed_2" / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "score": None} if "score" in line else line) + "\n" for line in lines))
    (section,) = agreement_sections(read_pairs(write(tmp_path, pairs)), "pairs.yaml")
    assert section.left_out == ["first: b, seed 2 (the score on t, harm after task 0 ('t') is not a number)"]
    assert [[cell.seed for cell in pair.first] for pair in section.pairs] == [[1]] * 4, "with the common seeds"


def test_a_seed_that_no_cell_has_is_an_error(pairs: dict[str, Any], tmp_path: Path) -> None:
    pairs["first"]["runs"][0]["seeds"] = [1, 99]
    with pytest.raises(
        ValueError, match=r"first\.yaml, first: no cell .* has the seed 99 in 'default'; there are \['1'"
    ):
        agreement_sections(read_pairs(write(tmp_path, pairs)), "pairs.yaml")


def test_its_commands_can_be_pasted(pairs: dict[str, Any], tmp_path: Path) -> None:
    (section,) = agreement_sections(read_pairs(write(tmp_path, pairs)), "some pairs.yaml", "a page")
    assert section.command.splitlines() == [
        f"hpa-lightning study run {tmp_path}/first.yaml --store {tmp_path}/first",
        f"hpa-lightning study run '{tmp_path}/the second.yaml' --store '{tmp_path}/the second'",
        "hpa-lightning study agree 'some pairs.yaml' --output 'a page'",
    ]
