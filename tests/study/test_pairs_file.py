from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.study.pairs_file import SameMethod, Selection, read_pairs

SIDE: dict[str, Any] = {"study": "a.yaml", "archives": ["x.jsonl"], "runs": [{"title": "A", "condition": "clean"}]}
PAIR = {"title": "Plain", "first": "plain", "second": "bare"}
GOOD: dict[str, Any] = {
    "title": "Two studies",
    "first": SIDE,
    "second": {"study": "b.yaml", "store": "runs", "runs": [{"title": "B", "condition": "c", "seeds": [1]}]},
    "pairs": [PAIR],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "pairs.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


def test_paths_start_from_the_file(tmp_path: Path) -> None:
    found = read_pairs(written(tmp_path))
    assert found.title == "Two studies" and found.pairs == (SameMethod("Plain", "plain", "bare"),)
    assert found.first.study == tmp_path / "a.yaml" and found.first.archives == (tmp_path / "x.jsonl",)
    assert found.first.store == Path("runs/a"), "where `study run` puts them"
    assert found.second.store == tmp_path / "runs"
    assert found.second.selections == (Selection("B", "c", (), (1,)),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, r"pairs are \[\]; expected a list"),
        ({"pairs": {"a": "b"}}, "pairs are .*; expected a list"),
        ({"pairs": [PAIR, PAIR]}, "the title 'Plain' stands twice"),
        ({"pairs": [PAIR, {**PAIR, "title": "x", "second": "y"}]}, "the first method 'plain' stands twice"),
        ({"pairs": [PAIR, {**PAIR, "title": "x", "first": "y"}]}, "the second method 'bare' stands twice"),
        ({"pairs": [{"title": "x", "first": "y"}]}, r"\['second'\] missing"),
        ({"pairs": [{**PAIR, "first": 5}]}, "first is 5; expected a text"),
        ({"first": {**SIDE, "runs": []}}, "first: runs are empty"),
        ({"first": {**SIDE, "runs": SIDE["runs"] * 2}}, "first, runs: the title 'A' stands twice"),
        ({"first": {**SIDE, "archives": "x.jsonl"}}, "archives is 'x.jsonl'; expected a list"),
        ({"first": {**SIDE, "archives": [1]}}, "archives has 1; expected texts"),
        (
            {"first": {**SIDE, "runs": [{"title": "A", "condition": "c", "seeds": [True]}]}},
            "seeds has True; expected whole",
        ),
        ({"first": {"runs": SIDE["runs"]}}, r"first: \['study'\] missing"),
        ({"third": SIDE}, "unknown keys"),
    ],
)
def test_files_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.yaml.*" + message):
        read_pairs(written(tmp_path, **changes))
